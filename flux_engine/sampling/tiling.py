"""Pictures larger than memory: the autoencoder over overlapping tiles.

Only the autoencoder is tiled; the transformer always sees the whole picture. Works at every
size: the last tile of an axis is moved back inside, and an axis shorter than a tile has one tile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Side and distance of the tiles, in latent cells."""

    size: int = 128
    stride: int = 64


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where the tiles of one axis begin; together they cover it, none leaves it."""
    if length <= size:
        return [0]
    return sorted({*range(0, length - size, stride), length - size})


def ramp(length: int, before: int, after: int) -> Tensor:
    """Weights along one axis of a tile, rising over `before` and falling over `after` cells."""
    weights = torch.ones(length)
    if before:
        weights[:before] = torch.arange(1, before + 1) / (before + 1)
    if after:
        falling = torch.arange(after, 0, -1) / (after + 1)
        weights[-after:] = torch.minimum(weights[-after:], falling)
    return weights


def axis_weights(begins: list[int], size: int, total: int) -> list[Tensor]:
    """One ramp a tile: it fades where a neighbour overlaps, and not at the picture's border."""
    out = []
    for i, begin in enumerate(begins):
        end = min(begin + size, total)
        before = begins[i - 1] + size - begin if i else 0
        after = end - begins[i + 1] if i + 1 < len(begins) else 0
        out.append(ramp(end - begin, min(before, end - begin), min(after, end - begin)))
    return out


def tiled(
    function: Callable[[Tensor], Tensor],
    x_BCHW: Tensor,
    tiling: Tiling,
    *,
    cell: int,
    scale: Fraction,
) -> Tensor:
    """`function` over tiles of `x_BCHW`, joined by weights that sum to one.

    `cell` is how many of the input's cells make a latent cell (1 for latents, 8 for pixels), and
    `scale` the output's side by the input's (8 when decoding, 1/8 when encoding).
    """
    size, stride = tiling.size * cell, tiling.stride * cell
    height, width = x_BCHW.shape[-2:]
    tops, lefts = starts(height, size, stride), starts(width, size, stride)
    out_h, out_w, out_size = int(height * scale), int(width * scale), int(size * scale)
    tops_out, lefts_out = [int(t * scale) for t in tops], [int(t * scale) for t in lefts]
    rows, columns = (
        axis_weights(tops_out, out_size, out_h),
        axis_weights(lefts_out, out_size, out_w),
    )
    total: Tensor | None = None
    weight = torch.zeros(out_h, out_w, device=x_BCHW.device)
    for top, y, row in zip(tops, tops_out, rows, strict=True):
        for left, x, column in zip(lefts, lefts_out, columns, strict=True):
            tile = function(x_BCHW[..., top : top + size, left : left + size]).float()
            mask = (row[:, None] * column[None, :]).to(tile.device)
            if total is None:
                total = tile.new_zeros(*tile.shape[:2], out_h, out_w)
            there = (..., slice(y, y + len(row)), slice(x, x + len(column)))
            total[there] += tile * mask
            weight[there] += mask
    assert total is not None
    return total / weight
