"""Keeping what is there: on a row's latent, the answer of the transformer before training.

No pictures are needed for it beyond some that the base itself has made.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flux_engine.training.loss import noised
from flux_engine.training.material import Material
from flux_engine.training.objective import Asks, Batch, Example
from flux_engine.training.sft import WITH_LATENTS, fresh_noise
from flux_engine.training.terms import (
    PLAIN,
    Guidance,
    Terms,
    bare_velocity,
    level_of,
    told,
    velocity,
)
from flux_engine.training.timesteps import UNIFORM, Timesteps


@dataclass(frozen=True, kw_only=True)
class Prior:
    """‖v − v_bare‖² at drawn noise levels, v_bare without anything that is trained."""

    kinds: ClassVar[frozenset[str]] = WITH_LATENTS
    timesteps: Timesteps = UNIFORM
    terms: Terms = PLAIN
    guidance: Guidance = 1.0

    def draw(self, material: Material, random: torch.Generator) -> Example:
        x0 = material.x0("prior", random)
        level = level_of(self.timesteps, material, x0, random)
        noise = fresh_noise(material, x0, random)
        guidance = told(self.guidance, material, random, "prior")
        state = noised(x0[None], noise[None], torch.tensor([level.sigma]))[0]
        return self.terms.sample(material, level, guidance, state=state, others={})

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        return self.terms.compare(velocity(ask, batch), bare_velocity(ask, batch), batch)
