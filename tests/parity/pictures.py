"""Pictures to start from, as the 8-bit levels that every implementation reads."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def picture(seed: int, height: int, width: int) -> Tensor:
    """(3, height, width) in −1…1: smooth colours with noise on top, on 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    noisy = smooth * 220 + 30 * torch.rand(3, height, width, generator=generator)
    return from_bytes(noisy.round().byte().permute(1, 2, 0).numpy())


def from_bytes(levels_HWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(levels_HWC.copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_bytes(picture_CHW: Tensor) -> NDArray[np.uint8]:
    """The inverse of `from_bytes`."""
    levels = ((picture_CHW + 1) * 127.5).round().byte().permute(1, 2, 0)
    return np.ascontiguousarray(levels.numpy())
