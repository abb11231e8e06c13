"""Learning few steps end to end: all of them are taken, and where they arrive is compared.

Shape letters: B batch, Z latent channels, H and W latent cells, N steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.latents import PATCH, start_noise
from flux_engine.request import Schedule
from flux_engine.sampling.schedule import shift_of, sigmas
from flux_engine.training.loss import along
from flux_engine.training.material import Material
from flux_engine.training.objective import LEVELS, Asks, Batch, Example
from flux_engine.training.terms import PLAIN, Guidance, Terms, asked, checked, told


@dataclass(frozen=True, kw_only=True)
class DirectDistill:
    """‖x_N − x0‖² after N steps of the sampler from the noise that the picture was made of.

    The noise is the row's, or that of its seed; the steps are `num_inference_steps`, or the row's.
    The gradient passes through all of them.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"pictures", "cache", "pair", "path"})
    terms: Terms = PLAIN
    guidance: Guidance = 1.0
    schedule: Schedule = "diffsynth"
    sigma_shift: float | None = None
    timestep_shift: bool = True  # false for models that were published without one
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        if self.terms.weighting != "none":
            raise SettingError(
                f"weighting is {self.terms.weighting}: direct_distill has no one noise level that "
                "could be weighed; allowed is none"
            )

    def draw(self, material: Material, random: torch.Generator) -> Example:
        x0 = material.x0("direct_distill", None)
        steps = self.num_inference_steps or material.num_inference_steps
        if not steps:
            raise material.lacks("num_inference_steps", "direct_distill without any of its own")
        tokens = x0[0].numel() // PATCH**2
        shift = shift_of(self.schedule, tokens, self.sigma_shift, self.timestep_shift)
        guidance = told(self.guidance, material, random, "direct_distill")
        tensors = {
            "x": start_of(material, x0),
            "x0": x0,
            LEVELS: sigmas(self.schedule, steps, shift),
            "weight": torch.tensor(1.0),
            "mask": material.mask_like(x0),
            **asked(material, guidance),
        }
        return Example(material.name, checked(material, tensors))

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        x_BZHW, levels_BN = batch["x"], batch[LEVELS]
        words = batch["t5"], batch["pooled"], batch["guidance"]
        for here, there in zip(levels_BN.unbind(1), levels_BN[:, 1:].unbind(1), strict=False):
            x_BZHW = x_BZHW + along(there - here, x_BZHW) * ask(x_BZHW, here, *words)
        return self.terms.compare(x_BZHW, batch["x0"], batch)


def start_of(material: Material, x0_ZHW: Tensor) -> Tensor:
    """The noise that the row's picture was made of, as the engine draws it."""
    if material.states is not None:
        return material.states[0]
    if material.noise is not None:
        return material.noise
    if material.seed is None:
        raise material.lacks("seed and no noise", "direct_distill")
    channels, height, width = x0_ZHW.shape
    return start_noise(material.seed, (channels, height, width))
