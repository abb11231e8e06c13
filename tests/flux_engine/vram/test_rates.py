import pytest
import torch

from flux_engine.vram.card import CudaCard
from flux_engine.vram.rates import KNOWN, measured


def test_every_known_card_computes_faster_than_it_is_fed() -> None:
    for name, card in KNOWN.items():
        assert card.name == name
        assert card.matmul > card.attention > 100 * card.link


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_card_here_is_measured() -> None:
    card = measured(CudaCard(torch.device("cuda")), torch.bfloat16, 1 << 30)
    assert card.memory == 1 << 30
    assert 1e9 < card.link < 1e12
    assert 1e12 < card.attention < 1e16
    assert 1e12 < card.matmul < 1e16
