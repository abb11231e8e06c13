"""What the transformer is trained on."""

from pathlib import Path

import torch

from flux_engine.models.vae import AutoEncoder
from shapes.cache import Cache, training_rows, write_cache
from shapes.recipe import ONE
from shapes.text import TextEncoders, write_text


def test_held_out_combinations_never_enter() -> None:
    rows, templates = training_rows(ONE.world, 0, 5000)
    assert not ONE.world.held_out(rows).any()
    assert templates.unique().tolist() == [0, 1, 2]


def test_each_picture_finds_the_text_of_its_own_caption(tmp_path: Path) -> None:
    write_text(tmp_path, ONE, seed=0)
    encoders, path = TextEncoders.load(tmp_path, 20), tmp_path / "cache.safetensors"
    vae = AutoEncoder(ONE.autoencoder).eval()
    write_cache(path, ONE.world, vae, encoders, seed=3, pictures=5)
    cache = Cache.load(path, torch.device("cpu"))
    rows, templates = training_rows(ONE.world, 3, 5)
    sequence, pooled = encoders(
        [ONE.world.caption(row, t) for row, t in zip(rows, templates.tolist(), strict=True)]
    )
    assert cache.latents.shape == (5, 16, 64)
    torch.testing.assert_close(cache.text.pooled[cache.captions], pooled)
    torch.testing.assert_close(cache.text.sequence[cache.captions], sequence, rtol=1e-3, atol=1e-3)
