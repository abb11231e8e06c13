"""Weights written to a folder are the weights read from it."""

import json
from pathlib import Path

import pytest
import torch

from flux_engine.models.dit import FluxTransformer
from flux_engine.models.vae import AutoEncoder
from shapes.folder import (
    AUTOENCODER,
    SAMPLING,
    TRANSFORMER,
    begin,
    finish,
    load_autoencoder,
    load_transformer,
    write_weights,
)
from shapes.recipe import ONE, TWO, Recipe


@pytest.mark.parametrize("guided", [True, False])
def test_a_transformer_comes_back_rounded_to_bfloat16(tmp_path: Path, guided: bool) -> None:
    spec = ONE.transformer if guided else ONE.unguided
    net = FluxTransformer(spec)
    write_weights(net, tmp_path / TRANSFORMER)
    again = load_transformer(tmp_path, ONE)
    assert again.spec == spec
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b)


def test_nothing_but_the_whole_file_is_left(tmp_path: Path) -> None:
    write_weights(FluxTransformer(ONE.unguided), tmp_path / TRANSFORMER)
    assert [path.name for path in tmp_path.iterdir()] == [TRANSFORMER]
    assert (tmp_path / TRANSFORMER).stat().st_mode & 0o044


@pytest.mark.parametrize("recipe", [ONE, TWO])
def test_a_finished_folder_has_every_part_fits_its_world_and_can_be_shipped(
    tmp_path: Path, recipe: Recipe
) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    begin(parts, recipe, AutoEncoder(recipe.autoencoder), seed=0)
    finish(whole, recipe, FluxTransformer(recipe.transformer), source=parts)
    assert (whole / AUTOENCODER).read_bytes() == (parts / AUTOENCODER).read_bytes()
    assert load_transformer(whole, recipe).guidance_in is not None
    assert not load_autoencoder(whole, recipe).training
    told = json.loads((whole / SAMPLING).read_text())
    assert told["height"] == told["width"] == recipe.world.side
    assert sum(path.stat().st_size for path in whole.rglob("*.*")) < 25_000_000
