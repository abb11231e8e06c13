"""The autoencoder's loss and the gain folded into its weights."""

import torch

from flux_engine.models.vae import AutoEncoder
from shapes.autoencoder import fold_gain, reconstruction_loss
from shapes.recipe import ONE
from shapes.world import keyed


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


def test_the_loss_is_a_function_of_its_key_at_either_size() -> None:
    torch.manual_seed(0)
    vae = AutoEncoder(ONE.autoencoder)
    for side in (32, 64):
        a, b = (reconstruction_loss(vae, ONE.world, keyed("loss"), 2, side) for _ in range(2))
        assert torch.equal(a, b)
        assert a.isfinite()
