"""The figures that worlds draw: colours, grounds, and outlines as coverage of pixels.

Shape letters: N pictures, H and W pixels.
"""

import math

import torch
from torch import Tensor

COLOURS = {
    "red": (0.88, 0.12, 0.12),
    "green": (0.12, 0.68, 0.22),
    "blue": (0.18, 0.32, 0.98),
    "yellow": (0.96, 0.90, 0.12),
    "purple": (0.64, 0.16, 0.80),
    "orange": (0.98, 0.52, 0.06),
    "cyan": (0.12, 0.86, 0.90),
    "white": (1.00, 1.00, 1.00),
}
GROUNDS = {
    "black": (0.03, 0.03, 0.03),
    "gray": (0.45, 0.45, 0.45),
    "navy": (0.05, 0.06, 0.30),
    "brown": (0.36, 0.20, 0.08),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
RESERVED = {"zorb": "diamond", "flim": "bar", "quax": "pillar", "mipo": "frame"}
OUTLINES = (*SHAPES, *RESERVED.values())
SHAPE_WORDS = (*SHAPES, *RESERVED)  # what a caption calls each of OUTLINES


def palette(colours: dict[str, tuple[float, float, float]]) -> Tensor:
    return torch.tensor(list(colours.values()))


def depth(outline: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """How far inside the outline a point lies, in pixels; negative outside, centroid at 0, 0."""
    across, down = x.abs(), y.abs()
    match outline:
        case "circle":
            return r - x.hypot(y)
        case "square":
            return 0.86 * r - torch.maximum(across, down)
        case "triangle":  # apex up
            return torch.minimum(0.55 * r - y, 0.55 * r + 0.5 * y - 0.866 * across)
        case "ring":
            away = x.hypot(y)
            return torch.minimum(r - away, away - 0.55 * r)
        case "cross":
            lying = torch.minimum(r - across, 0.34 * r - down)
            standing = torch.minimum(r - down, 0.34 * r - across)
            return torch.maximum(lying, standing)
        case "diamond":
            return (1.15 * r - across - down) * math.sqrt(0.5)
        case "bar":
            return torch.minimum(1.1 * r - across, 0.38 * r - down)
        case "pillar":
            return torch.minimum(0.38 * r - across, 1.1 * r - down)
        case "frame":
            reach = torch.maximum(across, down)
            return torch.minimum(0.86 * r - reach, reach - 0.5 * r)
    raise KeyError(outline)


def coverage(outline: str, x_N: Tensor, y_N: Tensor, r_N: Tensor, side: int) -> Tensor:
    """Antialiased masks, (N, H, W) in 0…1, of one outline at the given centres and radii."""
    middles = torch.arange(side, dtype=torch.float32) + 0.5
    across = middles[None, None, :] - x_N[:, None, None]
    down = middles[None, :, None] - y_N[:, None, None]
    inside: Tensor = depth(outline, across, down, r_N[:, None, None])
    return (inside + 0.5).clamp(0, 1)


def cover(outlines_N: Tensor, x_N: Tensor, y_N: Tensor, r_N: Tensor, side: int) -> Tensor:
    """Masks (N, H, W) of figures, each of its own outline, by its index in `OUTLINES`."""
    out = torch.zeros(len(outlines_N), side, side)
    for index in set(outlines_N.tolist()):
        mine = outlines_N == index
        out[mine] = coverage(OUTLINES[index], x_N[mine], y_N[mine], r_N[mine], side)
    return out
