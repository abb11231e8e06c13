"""World one: one figure at one of nine places on a plain ground, 64×64.

Shape letters: N pictures, H and W pixels. A row is colour, shape, place, size, ground.
"""

import re
from typing import ClassVar

import torch
from torch import Tensor

from shapes.figures import COLOURS, GROUNDS, OUTLINES, SHAPE_WORDS, SHAPES, cover, palette
from shapes.ruler import border, first_named, in_blocks, read_figure
from shapes.world import Reading, World

PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
RADII = {"small": 7.0, "large": 11.0}
MARGIN, PITCH = 16.0, 16.0  # pixels to the first place, and from one place to the next
PLACE_JITTER, RADIUS_JITTER = 2.0, 0.5
FIGURE = 0.985  # quantile of the distances from the ground: of 4096 pixels a small figure has 107
AT_ONCE = 64  # pictures: larger blocks fall out of the processor's cache


class One(World):
    """8 colours × 5 shapes × 9 places × 2 sizes × 4 grounds = 2880 combinations."""

    name, side = "flux-shapes", 64
    values: ClassVar = {
        "colour": tuple(COLOURS),
        "shape": SHAPE_WORDS,
        "place": PLACES,
        "size": tuple(RADII),
        "ground": tuple(GROUNDS),
    }
    counts = (len(COLOURS), len(SHAPES), len(PLACES), len(RADII), len(GROUNDS))
    templates = (
        "a {size} {colour} {shape} at the {place} on a {ground} background",
        "a {ground} background with a {size} {colour} {shape} in the {place}.",
        "{colour} {shape}, {size}, {place}, {ground} background",
    )

    def combinations(self) -> Tensor:
        return torch.cartesian_prod(*(torch.arange(count) for count in self.counts))

    def any_rows(self, count: int, random: torch.Generator) -> Tensor:
        counts = [len(words) for words in self.values.values()]
        return torch.stack([torch.randint(c, (count,), generator=random) for c in counts], dim=1)

    def draw_masked(
        self, rows_NA: Tensor, random: torch.Generator | None, side: int
    ) -> tuple[Tensor, Tensor]:
        masks_NHW = self.masks(rows_NA, random, side)
        figure = palette(COLOURS)[rows_NA[:, 0]][:, :, None, None]
        ground = palette(GROUNDS)[rows_NA[:, 4]][:, :, None, None]
        return torch.lerp(ground, figure, masks_NHW[:, None]), masks_NHW

    def masks(self, rows_NA: Tensor, random: torch.Generator | None, side: int) -> Tensor:
        """Where each row's figure is, (N, H, W)."""
        n = len(rows_NA)
        jitter = torch.zeros(n, 3)
        if random is not None:
            jitter = torch.rand(n, 3, generator=random) * 2 - 1
        place, scale = rows_NA[:, 2], side / self.side
        x = (MARGIN + PITCH * (place % 3) + PLACE_JITTER * jitter[:, 0]) * scale
        y = (MARGIN + PITCH * (place // 3) + PLACE_JITTER * jitter[:, 1]) * scale
        radii = torch.tensor(list(RADII.values()))
        r = (radii[rows_NA[:, 3]] + RADIUS_JITTER * jitter[:, 2]) * scale
        return cover(rows_NA[:, 1], x, y, r, side)

    def read(self, pictures_N3HW: Tensor, asked_NA: Tensor) -> Reading:
        """Shapes are told apart among the trained ones, or all if a reserved one was asked."""
        outlines = SHAPES if bool(self.known(asked_NA).all()) else OUTLINES

        def read_block(x_N3HW: Tensor) -> Reading:
            ground_N3 = border(x_N3HW).median(dim=2).values
            found = read_figure(x_N3HW, ground_N3, FIGURE, outlines, tuple(RADII.values()))
            rows = {
                "colour": found.colour,
                "shape": found.shape,
                "place": 3 * cell(found.y) + cell(found.x),
                "size": found.size,
                "ground": torch.cdist(ground_N3, palette(GROUNDS)).argmin(1),
            }
            attributes = torch.stack([rows[name] for name in self.attributes], dim=1)
            return Reading(attributes, found.overlap)

        return in_blocks(read_block, pictures_N3HW, AT_ONCE)

    def parse(self, caption: str) -> Tensor | None:
        """In any order and wording."""
        text = " ".join(re.findall(r"[a-z]+", caption.lower()))
        found = [first_named(text, words) for words in self.values.values()]
        return None if None in found else torch.tensor(found)


def cell(position_N: Tensor) -> Tensor:
    """Which of the three rows or columns of places is nearest."""
    return ((position_N - MARGIN) / PITCH).round().clamp(0, 2).long()
