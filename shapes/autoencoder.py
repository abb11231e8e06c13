"""The stage `vae`: an autoencoder of the published layout, small enough for one CPU core.

Shape letters: B batch, N pictures, C latent channels, H and W pixels.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flux_engine.models.vae import SCALE, AutoEncoder
from shapes.loop import Journal, Schedule, train
from shapes.recipe import Recipe
from shapes.world import World, blocks, keyed

KL_WEIGHT, ABSOLUTE_WEIGHT, FIGURE_WEIGHT = 2e-5, 0.25, 4.0


def train_autoencoder(
    folder: Path, recipe: Recipe, schedule: Schedule, *, seed: int, device: torch.device
) -> AutoEncoder:
    """Whole worlds at half size first, four times as many a second, then at full size.

    Crops would be as cheap, but the group norms would learn statistics that no picture has.
    """
    world = recipe.world
    torch.manual_seed(seed)
    vae = AutoEncoder(recipe.autoencoder).to(device)
    journal = Journal(folder / "vae.jsonl")

    def loss_of(step: int) -> Tensor:
        small = step < recipe.small_steps
        n = recipe.small_batch if small else recipe.vae_batch
        side = world.side // 2 if small else world.side
        return reconstruction_loss(vae, world, keyed(seed, "vae", step), n, side)

    train(vae, loss_of, schedule, checkpoint=folder / "vae.checkpoint.safetensors", journal=journal)
    rows = world.some(recipe.gain_pictures, keyed("gain"))
    fold_gain(vae.cpu(), world.draw(rows, keyed("gain", "jitter")))
    return vae.eval().requires_grad_(False)


def reconstruction_loss(
    vae: AutoEncoder, world: World, random: torch.Generator, batch: int, side: int
) -> Tensor:
    """Weighted error of pictures drawn afresh; the reserved outlines are among them."""
    device = vae.encoder.conv_in.weight.device
    pictures, masks_BHW = world.draw_masked(world.any_rows(batch, random), random, side)
    x_BCHW = (pictures * 2 - 1).to(device)
    mean, logvar = vae.moments(x_BCHW)
    logvar = logvar.clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=random).to(device)
    error = vae.decoder(mean + (0.5 * logvar).exp() * noise) - x_BCHW
    # mostly flat ground: without weights a grey nothing is a good answer for long
    figure_B1HW = (masks_BHW[:, None] > 0.02).float().to(device)
    weight = 1 + FIGURE_WEIGHT * F.max_pool2d(figure_B1HW, 3, stride=1, padding=1)
    weight = weight / weight.mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    off: Tensor = weight * (error.square() + ABSOLUTE_WEIGHT * error.abs())
    return off.mean() + KL_WEIGHT * kl


@torch.no_grad()
def fold_gain(vae: AutoEncoder, pictures_N3HW: Tensor) -> None:
    """Give these pictures' latents, after the published scale, unit deviation.

    What is decoded stays the same: a gain passes through the zero padding of a convolution
    unharmed. A shift would not.
    """
    means = [vae.moments(part * 2 - 1)[0] for part in blocks(pictures_N3HW, 64)]
    gain = 1 / (SCALE * torch.cat(means).std())
    channels = vae.spec.latent_channels
    vae.encoder.conv_out.weight[:channels] *= gain
    assert vae.encoder.conv_out.bias is not None
    vae.encoder.conv_out.bias[:channels] *= gain
    vae.encoder.conv_out.bias[channels:] += 2 * gain.log()  # the posterior widens with its mean
    vae.decoder.conv_in.weight /= gain
