"""Rectified flow: what is learned, from which noise levels, and how far off it is.

The path from data x0 to noise is a straight line, x_σ = (1 − σ)·x0 + σ·noise, and the model
learns its velocity, noise − x0. Shape letters: B batch; "..." whatever one sample looks like.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

LossType = Literal["mse", "huber", "mae"]


def sample_sigmas(
    count: int, random: torch.Generator, *, mean: float = 0.0, spread: float = 1.0
) -> Tensor:
    """Noise levels (B,) in 0…1 on the generator's device: the sigmoid of a normal draw."""
    draws = torch.randn(count, generator=random, device=random.device)
    return torch.sigmoid(mean + spread * draws)


def along(values_B: Tensor, like: Tensor) -> Tensor:
    """One value per sample, shaped to multiply `like`, (B, ...)."""
    return values_B.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def noised(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """The point at σ on the line from data to noise."""
    sigma = along(sigma_B, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """What the model should answer at every point of that line."""
    return noise - x0


def guided_target(unconditional: Tensor, conditional: Tensor, weight_B: Tensor) -> Tensor:
    """The velocity of classifier-free guidance, u + w·(c − u), to be learned in one pass."""
    return torch.lerp(unconditional, conditional, along(weight_B, conditional))


def flow_loss_per_sample(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean square error in float32 of each sample, (B,)."""
    return (velocity.float() - target.float()).square().flatten(1).mean(1)


def flow_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean square error in float32 over the batch."""
    return flow_loss_per_sample(velocity, target).mean()


def errors(answer: Tensor, target: Tensor, kind: LossType, delta: float = 1.0) -> Tensor:
    """How far off each number is, in float32. `delta` is where Huber's square turns straight."""
    answer, target = answer.float(), target.float()
    match kind:
        case "mse":
            return (answer - target).square()
        case "mae":
            return (answer - target).abs()
        case "huber":
            return F.huber_loss(answer, target, reduction="none", delta=delta)


def masked_mean(values_BZHW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """The mean of each sample, (B,), in which a latent cell counts as much as the mask says."""
    weighed = (values_BZHW * mask_B1HW).flatten(1).sum(1)
    return weighed / (mask_B1HW.flatten(1).sum(1) * values_BZHW.shape[1])
