"""Rotary positions: which angle each token's queries and keys are turned by.

Shape letters: B batch, H heads, L tokens, A axes, R pairs of a head (head width / 2).
"""

import torch
from einops import rearrange
from torch import Tensor

THETA = 10000.0


def rotation(ids_LA: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Cosines and sines, (2, L, R) in float32, of integer positions on each axis.

    `axes` are the head channels given to each axis (even; their sum is the head width).
    Angles are computed in float64, so positions stay exact at any picture size.
    """
    angles = []
    for axis, width in enumerate(axes):
        k = torch.arange(0, width, 2, dtype=torch.float64, device=ids_LA.device)
        angles.append(ids_LA[:, axis, None].double() * THETA ** (-k / width))
    angle_LR = torch.cat(angles, dim=-1)
    return torch.stack([angle_LR.cos(), angle_LR.sin()]).float()


def rotate(x_BHLE: Tensor, rotation_2LR: Tensor) -> Tensor:
    """Turn neighbouring channel pairs (0,1), (2,3), … in float32; the input's dtype comes back."""
    cos, sin = rotation_2LR
    if not torch.compiler.is_compiling():  # which has no code for complex numbers
        pairs = rearrange(x_BHLE.float(), "... (R two) -> ... R two", two=2)
        turned = torch.view_as_complex(pairs) * torch.complex(cos, sin)
        turned = torch.view_as_real(turned)
        return turned.flatten(-2).type_as(x_BHLE)
    even, odd = rearrange(x_BHLE.float(), "... (R two) -> two ... R", two=2)
    turned = torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1)
    return turned.flatten(-2).type_as(x_BHLE)
