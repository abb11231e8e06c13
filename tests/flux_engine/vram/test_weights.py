import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flux_engine import SettingError
from flux_engine.models.dit import FluxTransformer
from flux_engine.vram.residency import Residency
from flux_engine.vram.weights import Weights
from tests.flux_engine.vram.streaming import BLOCKS, narrow_dit, rooms, run, small_dit, staged

Hold = Callable[[FluxTransformer], Residency]
WEIGHT = "double_blocks.1.img_mlp.0.weight"

HELD: dict[str, Hold] = {
    "without a card": lambda dit: Residency({"dit": dit}),
    "on a card": lambda dit: rooms(dit)[0],
}
held = pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
STAGES = (staged(frozenset(), 2), staged(frozenset(BLOCKS[::2]), 2), staged(frozenset(BLOCKS), 2))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_weights_without_a_card_are_those_of_the_model() -> None:
    dit = small_dit()
    at_home = Weights({"dit": dit}, None, None)
    assert at_home.stored("dit", "img_in.weight").data_ptr() == dit.img_in.weight.data_ptr()


@held
def test_wide_weights_take_the_place_of_eight_bits_and_are_narrowed(hold: Hold) -> None:
    torch.manual_seed(5)
    other = torch.randn(128, 64)
    changed = small_dit()
    changed.get_parameter(WEIGHT).data = other
    expected = run(narrow_of(changed))
    room = hold(dit := narrow_dit())
    for stage in STAGES:
        with room.phase(stage):
            assert same(run(dit, room), run(narrow_dit()))
            room.override("dit", {WEIGHT: other})
            assert same(run(dit, room), expected)
            room.restore("dit")
            assert same(run(dit, room), run(narrow_dit()))


@held
def test_what_is_stored_is_told_wide(hold: Hold) -> None:
    room = hold(narrow_dit())
    wide, told = small_dit().get_parameter(WEIGHT), room.stored("dit", WEIGHT)
    assert told.dtype == wide.dtype
    assert 0 < (told - wide).norm() / wide.norm() < 0.05
    assert torch.equal(room.stored("dit", "img_in.weight"), small_dit().img_in.weight)


@held
def test_bits_and_scales_cannot_be_overridden_by_themselves(hold: Hold) -> None:
    room = hold(narrow_dit())
    bits = torch.zeros(128, 64, dtype=torch.int8)
    with pytest.raises(SettingError, match=r"img_mlp\.0\.weight .* int8 for .* fl"):
        room.override("dit", {WEIGHT: bits})
    with pytest.raises(SettingError, match=r"no such weights: .*weight_scale"):
        room.override("dit", {f"{WEIGHT}_scale": torch.ones(128, 1)})


@held
@pytest.mark.parametrize("products", [False, True])
def test_the_exact_answer_is_that_of_the_wide_weights(hold: Hold, products: bool) -> None:
    wide = {key: tensor.data for key, tensor in small_dit().named_parameters()}
    room = hold(dit := narrow_dit(products=products))
    approximate, exact = run(narrow_dit(products=products)), run(small_dit())
    assert not same(approximate, exact)
    for stage in STAGES:
        with room.phase(stage):
            assert same(run(dit, room), approximate)
        with room.exactly("dit", lambda: wide), room.phase(staged(frozenset(), 2)):
            assert same(run(dit, room), exact)
    with room.phase(STAGES[0]):
        assert same(run(dit, room), approximate)


@held
def test_overrides_are_in_the_exact_answer_too(hold: Hold) -> None:
    wide = {key: tensor.data for key, tensor in small_dit().named_parameters()}
    torch.manual_seed(6)
    others = {WEIGHT: torch.randn(128, 64), "img_in.weight": torch.randn(64, 16)}
    changed = small_dit()
    for key, tensor in others.items():
        changed.get_parameter(key).data = tensor
    room = hold(dit := narrow_dit())
    room.override("dit", others)
    with room.exactly("dit", lambda: wide), room.phase(staged(frozenset(), 2)):
        assert same(run(dit, room), run(changed))
    room.restore("dit")
    with room.phase(STAGES[0]):
        assert same(run(dit, room), run(narrow_dit()))


def narrow_of(dit: FluxTransformer) -> FluxTransformer:
    made = narrow_dit()
    wide = {key: parameter.data for key, parameter in dit.named_parameters()}
    Residency({"dit": made}).override("dit", {WEIGHT: wide[WEIGHT]})
    return made


def test_on_a_card_what_was_given_is_not_kept_beside_its_copy() -> None:
    room, _ = rooms(dit := small_dit())
    torch.manual_seed(5)
    given = torch.randn(128, 64)
    changed = small_dit()
    changed.get_parameter(WEIGHT).data = given.clone()
    kept = weakref.ref(given)
    room.override("dit", {WEIGHT: given})
    del given
    gc.collect()
    assert kept() is None
    room.override("dit", {"double_blocks.1.img_mlp.0.bias": torch.zeros(128)})  # of the same block
    changed.get_parameter("double_blocks.1.img_mlp.0.bias").data = torch.zeros(128)
    with room.phase(STAGES[0]):
        assert same(run(dit, room), run(changed))


def test_parameters_are_grouped_by_what_is_copied_together() -> None:
    names = [WEIGHT, "img_in.weight", "single_blocks.0.linear1.weight", "txt_in.weight",
             "double_blocks.1.img_mlp.2.weight"]  # fmt: skip
    room, _ = rooms(small_dit())
    assert room.by_unit("dit", names) == [
        [WEIGHT, names[4]], ["img_in.weight", "txt_in.weight"], [names[2]],
    ]  # fmt: skip
    assert Residency({"dit": small_dit()}).by_unit("dit", names) == [names]
