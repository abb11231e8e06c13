"""The autoencoder's loss, a run that was cut short, and the gain folded into its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flux_engine.models.vae import AutoEncoder
from shapes import autoencoder
from shapes.autoencoder import Reconstruction, drawn, fold_gain, train_autoencoder
from shapes.recipe import ONE
from shapes.world import keyed

TOY = replace(ONE, small_steps=1, small_batch=2, vae_steps=4, vae_batch=2, gain_pictures=4)


def test_folding_gives_latents_unit_spread_and_leaves_pictures_alone() -> None:
    torch.manual_seed(0)
    vae = AutoEncoder(ONE.autoencoder).eval()
    pictures = ONE.world.draw(ONE.world.combinations()[::120], keyed("gain"))
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures * 2 - 1))
        fold_gain(vae, pictures)
        z = vae.encode(pictures * 2 - 1)
        after = vae.decode(vae.encode(pictures * 2 - 1))
    assert abs(z.std().item() - 1) < 0.001
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)


def test_the_loss_is_a_function_of_seed_and_step_at_either_size() -> None:
    torch.manual_seed(0)
    vae = AutoEncoder(ONE.autoencoder)
    for step, side in ((0, 32), (1, 64)):
        batches = [drawn(TOY, step, 0), drawn(TOY, step, 0), drawn(TOY, step, 1)]
        assert batches[0]["pictures"].shape == (2, 3, side, side)
        a, b, other = (Reconstruction().loss(vae, batch) for batch in batches)
        assert torch.equal(a, b)
        assert not torch.equal(a, other)
        assert a.isfinite().all()


def test_a_run_that_was_cut_short_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    whole = train_autoencoder(tmp_path / "whole", TOY, seed=0, device=device)
    monkeypatch.setattr(autoencoder, "KEEP_EVERY", 2)
    keep = autoencoder.Checkpoints.write

    def fall(*words: object) -> None:
        keep(*words)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(autoencoder.Checkpoints, "write", fall)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(tmp_path / "cut", TOY, seed=0, device=device)
    monkeypatch.setattr(autoencoder.Checkpoints, "write", keep)
    again = train_autoencoder(tmp_path / "cut", TOY, seed=0, device=device)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
