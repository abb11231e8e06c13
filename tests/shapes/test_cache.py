"""What the transformer is trained on."""

from pathlib import Path

import torch

from flux_engine.models.vae import AutoEncoder
from shapes.autoencoder import SPEC
from shapes.cache import Cache, training_rows, write_cache
from shapes.text import TextEncoders, write_text
from shapes.world import caption, held_out


def test_held_out_combinations_never_enter() -> None:
    rows, templates = training_rows(0, 5000)
    assert not held_out(rows).any()
    assert templates.unique().tolist() == [0, 1, 2]


def test_each_picture_finds_the_text_of_its_own_caption(tmp_path: Path) -> None:
    write_text(tmp_path, seed=0)
    encoders, path = TextEncoders.load(tmp_path), tmp_path / "cache.safetensors"
    write_cache(path, AutoEncoder(SPEC).eval(), encoders, seed=3, pictures=5)
    cache = Cache.load(path, torch.device("cpu"))
    rows, templates = training_rows(3, 5)
    sequence, pooled = encoders(
        [caption(row, t) for row, t in zip(rows, templates.tolist(), strict=True)]
    )
    assert cache.latents.shape == (5, 16, 64)
    torch.testing.assert_close(cache.text.pooled[cache.captions], pooled)
    torch.testing.assert_close(cache.text.sequence[cache.captions], sequence, rtol=1e-3, atol=1e-3)
