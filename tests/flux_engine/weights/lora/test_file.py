from pathlib import Path

import torch

from flux_engine.weights.lora.file import full_delta, resolved
from flux_engine.weights.lora.names import Sizes, module_shapes
from flux_engine.weights.lora.read import read_lora
from tests.flux_engine.weights.lora.written import LAYOUTS, TINY, control, dora, encoders


def test_only_low_rank_changes_of_the_transformer_can_stand_beside_it(tmp_path: Path) -> None:
    for drawn, plain in (
        (LAYOUTS["3 kohya"](TINY), True),
        (encoders(), True),  # encoders are never beside, whatever changes them
        (dora(TINY), False),
        (control(TINY), False),
        (LAYOUTS["9 LyCORIS LoKr"](TINY), False),
    ):
        sizes = Sizes(TINY)
        assert read_lora(drawn.save(tmp_path), sizes).plain is plain


def test_bytes_are_those_of_the_tensors(tmp_path: Path) -> None:
    drawn = LAYOUTS["1 diffusers"](TINY)
    lora = read_lora(drawn.save(tmp_path), Sizes(TINY))
    assert lora.nbytes == sum(tensor.nbytes for tensor in drawn.tensors.values())


def test_a_replacement_is_a_change_once_the_base_is_known(tmp_path: Path) -> None:
    drawn = control(TINY)
    value = drawn.tensor("single_blocks.0.norm.key_norm.scale", 32)
    lora = read_lora(drawn.save(tmp_path), Sizes(TINY))
    target = ("dit", "single_blocks.0.norm.key_norm", "scale")
    base = torch.ones(32)
    assert torch.equal(full_delta(lora.targets[target], base), value - 1)  # type: ignore[index]
    plain = resolved(lora, {target: base})  # type: ignore[dict-item]
    assert not any(part.needs_base for part in plain.parts)
    assert torch.equal(full_delta(plain.targets[target], base), value - 1)  # type: ignore[index]


def test_dora_is_a_difference_once_the_base_is_known(tmp_path: Path) -> None:
    lora = read_lora(dora(TINY).save(tmp_path), Sizes(TINY))
    torch.manual_seed(0)
    base = {t: torch.randn(module_shapes(TINY)[t[1]]) for t in lora.targets}
    plain = resolved(lora, base)
    for target, parts in lora.targets.items():
        wanted = full_delta(parts, base[target])
        assert torch.allclose(full_delta(plain.targets[target], torch.zeros_like(wanted)), wanted)
