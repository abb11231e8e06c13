"""Recipes fit their worlds."""

import pytest
import torch

from flux_engine.models.dit import FluxTransformer
from shapes.recipe import ONE, TWO, Recipe, recipe


def parameters(made: Recipe) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in FluxTransformer(made.transformer).parameters())


def test_worlds_go_by_their_names() -> None:
    assert recipe("one") is ONE
    assert recipe("two") is TWO
    assert ONE.world.name == "flux-shapes"
    assert TWO.world.name == "flux-shapes-2"


def test_the_second_transformer_is_four_times_the_first() -> None:
    assert 2_200_000 < parameters(ONE) < 2_500_000
    assert 9_500_000 < parameters(TWO) < 12_000_000


@pytest.mark.parametrize(("made", "grid"), [(ONE, 4), (TWO, 8)])
def test_a_patch_is_sixteen_pixels_wide(made: Recipe, grid: int) -> None:
    assert made.grid == grid


@pytest.mark.parametrize("made", [ONE, TWO])
def test_the_teacher_lacks_nothing_but_the_guidance_embedder(made: Recipe) -> None:
    with torch.device("meta"):
        taught, teacher = FluxTransformer(made.transformer), FluxTransformer(made.unguided)
    more = taught.state_dict().keys() - teacher.state_dict().keys()
    assert {key.split(".")[0] for key in more} == {"guidance_in"}
