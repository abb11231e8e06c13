"""The demo model's autoencoder: of the published layout, small enough for one CPU core.

Shape letters: B batch, N pictures, C latent channels, H and W pixels.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from batch.storage import Storage
from batch.training.checkpoint import Checkpoint, Checkpoints
from flux_engine.models.vae import SCALE, AutoEncoder
from flux_engine.training.objective import Batch, Example
from flux_engine.training.optimizer import make_optimizer
from flux_engine.training.rates import Rates
from flux_engine.training.reduction import Alone
from flux_engine.training.stepper import MicroBatch, Stepper
from shapes.recipe import Recipe
from shapes.world import blocks, keyed

KL_WEIGHT, ABSOLUTE_WEIGHT, FIGURE_WEIGHT = 2e-5, 0.25, 4.0
RATE, WARMUP, FLOOR, KEEP_EVERY, LOG_EVERY = 2e-3, 50, 0.02, 100, 25

logger = logging.getLogger(__name__)


def train_autoencoder(
    folder: Path, recipe: Recipe, *, seed: int, device: torch.device
) -> AutoEncoder:
    """Whole worlds at half size first, four times as many a second, then at full size. A run that
    was cut short goes on from its checkpoint in `folder`, and ends with the same weights.

    Crops would be as cheap, but the group norms would learn statistics that no picture has.
    """
    torch.manual_seed(seed)
    vae = AutoEncoder(recipe.autoencoder).to(device)
    named = dict(vae.named_parameters())
    options = {"betas": (0.9, 0.99)}
    optimizer = make_optimizer("adamw", named, rate=0.0, weight_decay=0.0, options=options)
    rates = Rates(
        rate=RATE, steps=recipe.vae_steps, shape="cosine", warmup_steps=WARMUP, floor=FLOOR
    )
    stepper = Stepper(vae, named, optimizer, rates, Alone())
    checkpoints = Checkpoints(Storage(str(folder)), keep=1)
    last = checkpoints.latest()
    if last is not None:
        stepper.restore(last.state)
    for step in range(last.step if last else 0, recipe.vae_steps):
        batch = drawn(recipe, step, seed, device)
        facts = stepper.step(step, [MicroBatch(0, Reconstruction(), batch)])
        if step % LOG_EVERY == 0:
            logger.info("autoencoder: step %d, loss %.5f", step, facts.loss)
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == recipe.vae_steps:
            checkpoints.write(Checkpoint(step + 1, stepper.state(), {}))
    rows = recipe.world.some(recipe.gain_pictures, keyed("gain"))
    fold_gain(vae.cpu(), recipe.world.draw(rows, keyed("gain", "jitter")))
    return vae.eval().requires_grad_(False)


def drawn(recipe: Recipe, step: int, seed: int, device: torch.device | str = "cpu") -> Batch:
    """A step's pictures: drawn afresh, small ones first; the reserved outlines are among them."""
    world, small = recipe.world, step < recipe.small_steps
    count = recipe.small_batch if small else recipe.vae_batch
    side = world.side // 2 if small else world.side
    random = keyed(seed, "vae", step)
    pictures, masks_BHW = world.draw_masked(world.any_rows(count, random), random, side)
    cells = side // recipe.autoencoder.factor
    noise = torch.randn(count, recipe.autoencoder.latent_channels, cells, cells, generator=random)
    examples = [
        Example(f"autoencoder step {step} picture {i}", {"pictures": x, "mask": mask, "noise": n})
        for i, (x, mask, n) in enumerate(
            zip(pictures * 2 - 1, masks_BHW[:, None], noise, strict=True)
        )
    ]
    return Batch.of(examples, device)


class Reconstruction:
    """Weighted error of pictures that went through the latents."""

    def loss(self, ask: Any, batch: Batch) -> Tensor:
        vae: AutoEncoder = ask
        x_BCHW = batch["pictures"]
        mean, logvar = vae.moments(x_BCHW)
        logvar = logvar.clamp(-20, 10)
        error = vae.decoder(mean + (0.5 * logvar).exp() * batch["noise"]) - x_BCHW
        # mostly flat ground: without weights a grey nothing is a good answer for long
        figure_B1HW = (batch["mask"] > 0.02).float()
        weight = 1 + FIGURE_WEIGHT * F.max_pool2d(figure_B1HW, 3, stride=1, padding=1)
        weight = weight / weight.mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        off: Tensor = weight * (error.square() + ABSOLUTE_WEIGHT * error.abs())
        return off.flatten(1).mean(1) + KL_WEIGHT * kl.flatten(1).mean(1)


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
