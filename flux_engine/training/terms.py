"""The terms that objectives share: samples in one form, and how far off an answer counts as.

Shape letters: B batch, Z latent channels, H and W latent cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flux_engine.errors import SettingError, TrainingError
from flux_engine.latents import PATCH
from flux_engine.training.loss import LossType, errors, masked_mean
from flux_engine.training.material import Material
from flux_engine.training.objective import Asks, Batch, Example
from flux_engine.training.timesteps import Level, Timesteps, Weighting, weight

Guidance = float | tuple[float, float] | Literal["row"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How errors count: which, where Huber's are cut, and how much at each noise level."""

    loss_type: LossType = "mse"
    huber_delta: float = 1.0
    weighting: Weighting = "none"

    def __post_init__(self) -> None:
        if self.loss_type != "huber" and self.huber_delta != 1.0:
            raise SettingError(
                f"huber_delta is {self.huber_delta}, and loss_type {self.loss_type} has none"
            )
        if self.huber_delta <= 0:
            raise SettingError(f"huber_delta is {self.huber_delta}; it is above 0")

    def compare(self, answer: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The loss of each sample, (B,)."""
        off = errors(answer, target, self.loss_type, self.huber_delta)
        return masked_mean(off, batch["mask"]) * batch["weight"]

    def sample(
        self,
        material: Material,
        level: Level,
        guidance: float,
        *,
        state: Tensor,
        others: Mapping[str, Tensor],
    ) -> Example:
        """What is asked at `state`, (Z, h, w), beside whatever else its objective needs.

        TrainingError names the row if a number in it is not finite, or its size is odd.
        """
        tensors = {
            "x": state,
            "sigma": torch.tensor(level.sigma),
            "told": torch.tensor(level.told),
            "weight": torch.tensor(weight(self.weighting, level.sigma)),
            "mask": material.mask_like(state),
            **asked(material, guidance),
            **others,
        }
        return Example(material.name, checked(material, tensors))


PLAIN = Terms()


def asked(material: Material, guidance: float) -> dict[str, Tensor]:
    """What the model is told beside the state: text and embedded guidance."""
    return {
        "t5": material.t5_TW,
        "pooled": material.pooled_P,
        "guidance": torch.tensor(guidance),
    }


def checked(material: Material, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(f"{material.name}: {name} has NaN or infinity in it")
        if tensor.dim() == 3 and any(side % PATCH for side in tensor.shape[1:]):
            raise TrainingError(
                f"{material.name}: {name} is {tuple(tensor.shape)}; height and width are even"
            )
    return tensors


def told(guidance: Guidance, material: Material, random: torch.Generator, objective: str) -> float:
    """The embedded guidance of a sample: fixed, drawn from a range, or the row's."""
    if guidance == "row":
        if material.embedded_guidance is None:
            raise material.lacks("embedded_guidance", f"{objective} with guidance: row")
        return material.embedded_guidance
    if isinstance(guidance, tuple):
        low, high = guidance
        return low + (high - low) * float(torch.rand((), generator=random))
    assert not isinstance(guidance, str)
    return guidance


def level_of(
    timesteps: Timesteps, material: Material, state: Tensor, random: torch.Generator
) -> Level:
    """A noise level within what the row allows."""
    low, high = material.min_timestep_boundary, material.max_timestep_boundary
    if not 0.0 <= low < high <= 1.0:
        raise TrainingError(
            f"{material.name}: min_timestep_boundary is {low} and max_timestep_boundary {high}; "
            "they lie in 0 to 1, the first below the second"
        )
    tokens = state[0].numel() // PATCH**2
    return timesteps.draw(random, tokens=tokens, low=low, high=high)


def velocity(ask: Asks, batch: Batch) -> Tensor:
    return ask(batch["x"], batch["told"], batch["t5"], batch["pooled"], batch["guidance"])


def bare_velocity(ask: Asks, batch: Batch) -> Tensor:
    return ask.bare(batch["x"], batch["told"], batch["t5"], batch["pooled"], batch["guidance"])
