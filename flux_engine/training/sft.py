"""Learning from pictures: the velocity of a straight line from a latent to fresh noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flux_engine.training.loss import noised, velocity_target
from flux_engine.training.material import Material
from flux_engine.training.objective import Asks, Batch, Example
from flux_engine.training.terms import PLAIN, Guidance, Terms, level_of, told, velocity
from flux_engine.training.timesteps import UNIFORM, Timesteps

WITH_LATENTS = frozenset({"pictures", "cache", "pair", "path", "velocity"})


@dataclass(frozen=True, kw_only=True)
class Sft:
    """Supervised: ‖v − (noise − x0)‖² at drawn noise levels.

    Where a row has the moments of its latent, x0 is drawn from them, unless `posterior_mean`.
    """

    kinds: ClassVar[frozenset[str]] = WITH_LATENTS
    timesteps: Timesteps = UNIFORM
    terms: Terms = PLAIN
    guidance: Guidance = 1.0
    posterior_mean: bool = False

    def draw(self, material: Material, random: torch.Generator) -> Example:
        # in this order, so that the existing system draws the same from the same generator
        x0 = material.x0("sft", None if self.posterior_mean else random)
        level = level_of(self.timesteps, material, x0, random)
        noise = fresh_noise(material, x0, random)
        guidance = told(self.guidance, material, random, "sft")
        state = noised(x0[None], noise[None], torch.tensor([level.sigma]))[0]
        target = velocity_target(x0, noise)
        return self.terms.sample(material, level, guidance, state=state, others={"target": target})

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        return self.terms.compare(velocity(ask, batch), batch["target"], batch)


def fresh_noise(material: Material, x0_ZHW: Tensor, random: torch.Generator) -> Tensor:
    """As strong as the row says."""
    return torch.randn(x0_ZHW.shape, generator=random) * material.noise_scale
