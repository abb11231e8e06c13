"""The shapes world: pictures of one figure on a plain ground, and captions that name all of it.

Shape letters: N pictures, H and W pixels. A row of attributes is five indices, in the order of
`ATTRIBUTES`: colour, shape, place, size, ground.
"""

import hashlib
import math

import torch
from torch import Tensor

SIDE = 64
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
SHAPES = ("circle", "square", "triangle", "ring", "cross")
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
RADII = {"small": 7.0, "large": 11.0}
GROUNDS = {
    "black": (0.03, 0.03, 0.03),
    "gray": (0.45, 0.45, 0.45),
    "navy": (0.05, 0.06, 0.30),
    "brown": (0.36, 0.20, 0.08),
}
RESERVED = {"zorb": "diamond", "flim": "bar", "quax": "pillar", "mipo": "frame"}
OUTLINES = (*SHAPES, *RESERVED.values())
SHAPE_WORDS = (*SHAPES, *RESERVED)  # what a caption calls each of OUTLINES

ATTRIBUTES = ("colour", "shape", "place", "size", "ground")
COUNTS = (len(COLOURS), len(SHAPES), len(PLACES), len(RADII), len(GROUNDS))
TEMPLATES = (
    "a {size} {colour} {shape} at the {place} on a {ground} background",
    "a {ground} background with a {size} {colour} {shape} in the {place}.",
    "{colour} {shape}, {size}, {place}, {ground} background",
)
MARGIN, PITCH = 16.0, 16.0  # pixels to the first place, and from one place to the next
PLACE_JITTER, RADIUS_JITTER = 2.0, 0.5


def keyed(*key: object) -> torch.Generator:
    """Random numbers that depend on the key and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def combinations() -> Tensor:
    """Every row of attributes, (2880, 5)."""
    return torch.cartesian_prod(*(torch.arange(count) for count in COUNTS))


def held_out(rows_N5: Tensor) -> Tensor:
    """Which rows, about one in ten, are never trained on; decided by a hash of their names."""
    names = ("/".join(describe(row).values()) for row in rows_N5)
    marks = [hashlib.blake2b(name.encode(), digest_size=4).digest() for name in names]
    return torch.tensor([int.from_bytes(mark, "big") % 10 == 0 for mark in marks])


def describe(row_5: Tensor) -> dict[str, str]:
    """The words of one row of attributes."""
    colour, shape, place, size, ground = row_5.tolist()
    return {
        "colour": tuple(COLOURS)[colour],
        "shape": SHAPE_WORDS[shape],
        "place": PLACES[place],
        "size": tuple(RADII)[size],
        "ground": tuple(GROUNDS)[ground],
    }


def caption(row_5: Tensor, template: int) -> str:
    return TEMPLATES[template % len(TEMPLATES)].format(**describe(row_5))


def blocks(x: Tensor, size: int) -> list[Tensor]:
    """Pieces of at most `size` along the first axis."""
    return [x[start : start + size] for start in range(0, len(x), size)]


def palette(colours: dict[str, tuple[float, float, float]]) -> Tensor:
    return torch.tensor(list(colours.values()))


def radii() -> Tensor:
    return torch.tensor(list(RADII.values()))


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


def coverage(outline: str, x_N: Tensor, y_N: Tensor, r_N: Tensor, side: int = SIDE) -> Tensor:
    """Antialiased masks, (N, H, W) in 0…1, of one outline at the given centres and radii."""
    middles = torch.arange(side, dtype=torch.float32) + 0.5
    across = middles[None, None, :] - x_N[:, None, None]
    down = middles[None, :, None] - y_N[:, None, None]
    inside: Tensor = depth(outline, across, down, r_N[:, None, None])
    return (inside + 0.5).clamp(0, 1)


def masks(rows_N5: Tensor, random: torch.Generator | None = None, side: int = SIDE) -> Tensor:
    """Where each row's figure is, (N, H, W); `random` moves and sizes it a little."""
    n = len(rows_N5)
    jitter = torch.zeros(n, 3)
    if random is not None:
        jitter = torch.rand(n, 3, generator=random) * 2 - 1
    place, scale = rows_N5[:, 2], side / SIDE
    x = (MARGIN + PITCH * (place % 3) + PLACE_JITTER * jitter[:, 0]) * scale
    y = (MARGIN + PITCH * (place // 3) + PLACE_JITTER * jitter[:, 1]) * scale
    r = (radii()[rows_N5[:, 3]] + RADIUS_JITTER * jitter[:, 2]) * scale
    out = torch.zeros(n, side, side)
    for index in set(rows_N5[:, 1].tolist()):
        mine = rows_N5[:, 1] == index
        out[mine] = coverage(OUTLINES[index], x[mine], y[mine], r[mine], side)
    return out


def paint(rows_N5: Tensor, masks_NHW: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in 0…1 of figures that cover these masks."""
    figure = palette(COLOURS)[rows_N5[:, 0]][:, :, None, None]
    ground = palette(GROUNDS)[rows_N5[:, 4]][:, :, None, None]
    return torch.lerp(ground, figure, masks_NHW[:, None])


def draw(rows_N5: Tensor, random: torch.Generator | None = None) -> Tensor:
    """Pictures (N, 3, 64, 64) in 0…1 of these rows."""
    return paint(rows_N5, masks(rows_N5, random))
