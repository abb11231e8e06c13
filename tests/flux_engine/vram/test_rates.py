from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from flux_engine.vram import rates
from flux_engine.vram.card import CudaCard
from flux_engine.vram.rates import KNOWN, measured


def test_every_known_card_computes_faster_than_it_is_fed() -> None:
    for name, card in KNOWN.items():
        assert card.name == name
        assert card.matmul > card.attention > 100 * card.link


def test_what_is_timed_is_the_cards_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of the process's first GPU."""
    inside: list[torch.device] = []

    @contextmanager
    def device(which: torch.device) -> Iterator[None]:
        inside.append(which)
        yield
        inside.pop()

    class Unmeasured(CudaCard):
        def __init__(self) -> None:
            self.device = torch.device("cuda:1")

    def measure(card: CudaCard, *_: object) -> None:
        assert inside == [card.device]

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(rates, "_measured", measure)
    measured(Unmeasured(), torch.bfloat16, 0)
    assert not inside


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_card_here_is_measured() -> None:
    card = measured(CudaCard(torch.device("cuda")), torch.bfloat16, 1 << 30)
    assert card.memory == 1 << 30
    assert 1e9 < card.link < 1e12
    assert 1e12 < card.attention < 1e16
    assert 1e12 < card.matmul < 1e16
