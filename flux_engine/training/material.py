"""What a trainer has of one row: text, latents, answers of a teacher, all on the host.

Shape letters: T text tokens, W text width, P pooled width, Z latent channels, H and W of latents
(h and w in shapes) in latent cells, K segments of a path, M times, G values of guidance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flux_engine.errors import TrainingError


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """One row; tensors are float32 on the host, and None is what the row does not have.

    `name` is for messages. `negative_*` are of the empty or negative prompt. `moments` are mean
    and log-variance of a latent, as the transformer would see a draw of it. `states` are the
    points of a path at its `sigmas`, noise first; `v_cond` and `v_uncond` a teacher's answers at
    the times `t`, with each of `guidances` and without the prompt, at the latent noised by
    `noise`. `mask_1HW` has the weight, 0 to 1, of each latent cell.

    The two boundaries cut the noise levels that are drawn: the share of them, counted from pure
    noise down, where drawing begins and ends.
    """

    name: str
    caption: str
    t5_TW: Tensor
    pooled_P: Tensor
    negative_t5_TW: Tensor | None = None
    negative_pooled_P: Tensor | None = None
    latent_ZHW: Tensor | None = None
    moments: Tensor | None = None  # (2Z, h, w)
    noise: Tensor | None = None  # (Z, h, w); of a teacher's answers (M, Z, h, w)
    states: Tensor | None = None  # (K + 1, Z, h, w)
    sigmas: tuple[float, ...] = ()  # K + 1, falling
    v_cond: Tensor | None = None  # (M, G, Z, h, w)
    v_uncond: Tensor | None = None  # (M, Z, h, w)
    t: tuple[float, ...] = ()
    guidances: tuple[float, ...] = ()
    mask_1HW: Tensor | None = None
    embedded_guidance: float | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    min_timestep_boundary: float = 0.0
    max_timestep_boundary: float = 1.0
    noise_scale: float = 1.0

    def lacks(self, what: str, objective: str) -> TrainingError:
        return TrainingError(f"{self.name}: has no {what}, which {objective} needs")

    def mask_like(self, x_ZHW: Tensor) -> Tensor:
        """The weights of latent cells, (1, h, w); ones where the row has no mask."""
        if self.mask_1HW is None:
            return torch.ones(1, *x_ZHW.shape[1:])
        if self.mask_1HW.shape != (1, *x_ZHW.shape[1:]):
            raise TrainingError(
                f"{self.name}: the mask is {tuple(self.mask_1HW.shape)} and the latent "
                f"{tuple(x_ZHW.shape)}; one weight for each latent cell is wanted"
            )
        if not self.mask_1HW.isfinite().all() or self.mask_1HW.min() < 0:
            raise TrainingError(f"{self.name}: the mask has weights below 0, or none")
        if self.mask_1HW.max() <= 0:
            raise TrainingError(f"{self.name}: the mask leaves nothing to learn")
        return self.mask_1HW

    def x0(self, objective: str, random: torch.Generator | None) -> Tensor:
        """Data, (Z, h, w): drawn from the moments (without `random`: their mean), or the latent,
        or where the path ends."""
        if self.moments is not None:
            mean, logvar = self.moments.float().chunk(2)
            if random is None:
                return mean
            return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=random)
        if self.latent_ZHW is not None:
            return self.latent_ZHW.float()
        if self.states is not None:
            return self.states[-1].float()
        raise self.lacks("latent", objective)
