"""Noise, patches and positions: what the transformer is shown of a picture.

Shape letters: B batch, Z latent channels, H and W height and width in latent cells, S tokens,
C patch channels (4 Z), A position axes.
"""

import torch
from einops import rearrange
from torch import Tensor

PATCH = 2  # latent cells to a token's side


def start_noise(seed: int, shape_ZHW: tuple[int, int, int], rand_device: str = "cpu") -> Tensor:
    """Unit noise in float32, on the CPU; a function of the seed, the shape and the device kind."""
    generator = torch.Generator(rand_device).manual_seed(seed)
    return torch.randn(shape_ZHW, generator=generator, device=rand_device).cpu()


def pack(z_BZHW: Tensor) -> Tensor:
    return rearrange(z_BZHW, "B Z (H p) (W q) -> B (H W) (Z p q)", p=PATCH, q=PATCH)


def unpack(x_BSC: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`; height and width are those of the latents."""
    sides = {"H": height // PATCH, "W": width // PATCH, "p": PATCH, "q": PATCH}
    return rearrange(x_BSC, "B (H W) (Z p q) -> B Z (H p) (W q)", **sides)


def position_ids(text_tokens: int, height: int, width: int) -> Tensor:
    """(text + image tokens, 3): text at the origin, image tokens at (0, row, column)."""
    rows, columns = height // PATCH, width // PATCH
    ids = torch.zeros(rows, columns, 3, dtype=torch.int64)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return torch.cat([torch.zeros(text_tokens, 3, dtype=torch.int64), ids.flatten(0, 1)])
