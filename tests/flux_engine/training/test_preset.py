import pytest
import torch

from flux_engine.errors import CheckpointError, SettingError
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.fp8 import narrow_layers
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.net import Net
from flux_engine.training.preset import merge
from flux_engine.weights.lora.file import Lora
from flux_engine.weights.lora.models import Models
from tests.flux_engine.training.rows import transformer
from tests.flux_engine.training.test_lora import learned, samples


def answer(dit: FluxTransformer) -> torch.Tensor:
    return Net(dit, TrainedLora(dit, LoraShape(rank=1))).bare(*samples())


def beside(*loras: Lora) -> torch.Tensor:
    dit = transformer()
    worn = [TrainedLora(dit, LoraShape(rank=4)) for _ in loras]
    for one, lora in zip(worn, loras, strict=True):
        one.load(lora)
    return Net(dit, worn[-1])(*samples()).detach()


def test_a_merged_lora_is_part_of_what_the_next_one_starts_from() -> None:
    one, two = learned(LoraShape(rank=4)).lora(), learned(LoraShape(rank=3), seed=5).lora()
    dit = transformer()
    merge(Models(dit), [(one, 1.0), (two, 1.0)])
    assert (answer(dit) - answer(transformer())).abs().max() > 0.05
    torch.testing.assert_close(answer(dit), beside(one, two), atol=1e-5, rtol=1e-4)


def test_a_scale_of_nothing_changes_nothing() -> None:
    dit = transformer()
    merge(Models(dit), [(learned(LoraShape(rank=4)).lora(), 0.0)])
    assert torch.equal(answer(dit), answer(transformer()))


def test_weights_keep_their_type() -> None:
    dit = transformer().bfloat16()
    merge(Models(dit), [(learned(LoraShape(rank=4)).lora(), 1.0)])
    assert {p.dtype for p in dit.parameters()} == {torch.bfloat16}


def test_a_lora_of_another_model_is_refused_whole() -> None:
    lora = learned(LoraShape(rank=4)).lora(where="deep.safetensors")
    shallow = transformer()
    del shallow.single_blocks[2]
    before = [p.clone() for p in shallow.parameters()]
    with pytest.raises(CheckpointError, match=r"deep.safetensors: .*single_blocks.2.linear1"):
        merge(Models(shallow), [(lora, 1.0)])
    assert all(torch.equal(p, q) for p, q in zip(shallow.parameters(), before, strict=True))


def test_weights_of_eight_bits_cannot_take_it() -> None:
    dit = transformer()
    narrow_layers(dit.single_blocks)
    with pytest.raises(SettingError, match="before weights are narrowed"):
        merge(Models(dit), [(learned(LoraShape(rank=4)).lora(), 1.0)])
