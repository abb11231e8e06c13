"""Numbers into vectors: what the modulation is made of.

Shape letters: B batch, D hidden width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

SINUSOID_WIDTH = 256


def sinusoid(x_B: Tensor) -> Tensor:
    """(B, 256) in float32: 128 cosines, then 128 sines, of `x_B` at falling frequencies."""
    half = SINUSOID_WIDTH // 2
    k = torch.arange(half, dtype=torch.float32, device=x_B.device)
    angle = x_B.float()[:, None] * torch.exp(-math.log(10000.0) * k / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class MLPEmbedder(nn.Module):
    """Two linear layers with a SiLU between, under the published names."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width_in, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return y
