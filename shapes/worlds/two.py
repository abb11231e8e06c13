"""World two: two figures of different colours, one beside or above the other, 128×128.

The same picture can be told in two ways, "left of" from one figure and "right of" from the
other. Shape letters: N pictures, F the two figures, A attributes, H and W pixels. A row is the
first figure's colour, shape and size, its relation to the other, the other's three, the ground.
"""

import re
from collections.abc import Iterator
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from shapes.figures import COLOURS, GROUNDS, OUTLINES, SHAPE_WORDS, SHAPES, cover, palette
from shapes.ruler import border, in_blocks, read_figure
from shapes.world import Reading, World

RELATIONS = ("left of", "right of", "above", "below")  # each beside its opposite
RADII = {"small": 10.0, "large": 17.0}
MARGIN, MIDDLE = 24.0, 64.0  # pixels to the outermost centre; to the picture's
APART, CLOSER = 53.0, 7.0  # from centre to centre along the relation, more or less so much
ACROSS, ASKEW, RADIUS_JITTER = 30.0, 8.0, 0.75  # of both figures; of each; of its size
FIRST, RELATION, OTHER, GROUND = slice(0, 3), 3, slice(4, 7), 7
FIGURES = [0, 1, 2, 4, 5, 6]

FIGURE = 0.995  # quantile of the distances from the ground: of 16384 pixels a small figure has 157
APPARENT, SHARE = 0.2, 0.1  # distance that no ground has; of all that, on each side of a cut
AT_ONCE = 16


class Two(World):
    """80 figures × 70 of other colours × 4 relations × 4 grounds = 89600 combinations."""

    name, side = "flux-shapes-2", 128
    values: ClassVar = {
        "colour": tuple(COLOURS),
        "shape": SHAPE_WORDS,
        "size": tuple(RADII),
        "relation": RELATIONS,
        "other_colour": tuple(COLOURS),
        "other_shape": SHAPE_WORDS,
        "other_size": tuple(RADII),
        "ground": tuple(GROUNDS),
    }
    counts = (
        len(COLOURS), len(SHAPES), len(RADII), len(RELATIONS),
        len(COLOURS), len(SHAPES), len(RADII), len(GROUNDS),
    )  # fmt: skip
    templates = (
        "a {size} {colour} {shape} {relation} a {other_size} {other_colour} {other_shape}"
        " on a {ground} background",
        "a {ground} background with a {size} {colour} {shape} {relation}"
        " a {other_size} {other_colour} {other_shape}.",
        "{colour} {shape}, {size}, {relation} {other_colour} {other_shape}, {other_size},"
        " {ground} background",
        "on a {ground} background, {relation} a {other_size} {other_colour} {other_shape}:"
        " a {size} {colour} {shape}",
    )

    def combinations(self) -> Tensor:
        rows = torch.cartesian_prod(*(torch.arange(count) for count in self.counts))
        return rows[rows[:, 0] != rows[:, 4]]

    def any_rows(self, count: int, random: torch.Generator) -> Tensor:
        counts = [len(words) for words in self.values.values()]
        rows = torch.stack([torch.randint(c, (count,), generator=random) for c in counts], dim=1)
        step = torch.randint(1, len(COLOURS), (count,), generator=random)
        rows[:, 4] = (rows[:, 0] + step) % len(COLOURS)
        return rows

    def identities(self, rows_NA: Tensor) -> Iterator[str]:
        return super().identities(told_from_the_first(rows_NA))

    def draw_masked(
        self, rows_NA: Tensor, random: torch.Generator | None, side: int
    ) -> tuple[Tensor, Tensor]:
        masks_NFHW = self.masks(rows_NA, random, side)
        x_N3HW = palette(GROUNDS)[rows_NA[:, GROUND]][:, :, None, None]
        for figure, column in enumerate((0, 4)):
            colour_N3HW = palette(COLOURS)[rows_NA[:, column]][:, :, None, None]
            x_N3HW = torch.lerp(x_N3HW, colour_N3HW, masks_NFHW[:, figure, None])
        return x_N3HW, masks_NFHW.amax(dim=1)

    def masks(self, rows_NA: Tensor, random: torch.Generator | None, side: int) -> Tensor:
        """Where each row's two figures are, (N, F, H, W)."""
        n = len(rows_NA)
        jitter = torch.zeros(n, 7)
        if random is not None:
            jitter = torch.rand(n, 7, generator=random) * 2 - 1
        apart = APART + CLOSER * jitter[:, 0]
        near = MARGIN + (self.side - 2 * MARGIN - apart) * (jitter[:, 1] + 1) / 2
        along_NF = torch.stack([near, near + apart], dim=1)
        relation_N1 = rows_NA[:, RELATION, None]
        along_NF = torch.where(relation_N1 % 2 == 1, along_NF.flip(1), along_NF)
        across_NF = MIDDLE + ACROSS * jitter[:, 2, None] + ASKEW * jitter[:, 3:5]
        x_NF = torch.where(relation_N1 < 2, along_NF, across_NF)
        y_NF = torch.where(relation_N1 < 2, across_NF, along_NF)
        radii = torch.tensor(list(RADII.values()))
        r_NF = radii[rows_NA[:, [2, 6]]] + RADIUS_JITTER * jitter[:, 5:7]
        shapes_NF, scale = rows_NA[:, [1, 5]], side / self.side
        x, y, r = (each.flatten() * scale for each in (x_NF, y_NF, r_NF))
        return rearrange(cover(shapes_NF.flatten(), x, y, r, side), "(N F) H W -> N F H W", F=2)

    def read(self, pictures_N3HW: Tensor, asked_NA: Tensor) -> Reading:
        """Told from that figure from which more of it is as asked."""
        outlines = SHAPES if bool(self.known(asked_NA).all()) else OUTLINES
        sizes = tuple(RADII.values())

        def read_block(x_N3HW: Tensor) -> Reading:
            ground_N3 = border(x_N3HW).median(dim=2).values
            parts_FNHW, upright_N, parted_N = halves(x_N3HW, ground_N3)
            one, other = (
                read_figure(x_N3HW, ground_N3, FIGURE, outlines, sizes, part) for part in parts_FNHW
            )
            ground = torch.cdist(ground_N3, palette(GROUNDS)).argmin(1)
            rows = torch.stack(
                [
                    one.colour, one.shape, one.size, 2 * upright_N.long(),
                    other.colour, other.shape, other.size, ground,
                ],
                dim=1,
            )  # fmt: skip
            return Reading(rows, torch.minimum(one.overlap, other.overlap) * parted_N)

        found = in_blocks(read_block, pictures_N3HW, AT_ONCE)
        return Reading(as_asked(found.rows, asked_NA), found.overlap)

    def parse(self, caption: str) -> Tensor | None:
        """In the words of one of the templates."""
        text = bare(caption)
        for template in self.templates:
            names = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in self.values.items()}
            marked = bare(template.replace("{", " ").replace("}", " "))
            pattern = " ".join(names.get(word, word) for word in marked.split())
            if found := re.search(rf"\b{pattern}\b", text):
                return torch.tensor(
                    [words.index(found[name]) for name, words in self.values.items()]
                )
        return None


def bare(text: str) -> str:
    """Words in lower case, one space apart."""
    return " ".join(re.findall(r"[a-z_]+", text.lower()))


def turned(rows_NA: Tensor) -> Tensor:
    """The same pictures told from the other figure."""
    rows = rows_NA.clone()
    rows[:, FIRST], rows[:, OTHER] = rows_NA[:, OTHER], rows_NA[:, FIRST]
    rows[:, RELATION] ^= 1
    return rows


def told_from_the_first(rows_NA: Tensor) -> Tensor:
    """Told from the left or the upper figure."""
    return torch.where(rows_NA[:, RELATION, None] % 2 == 1, turned(rows_NA), rows_NA)


def as_asked(rows_NA: Tensor, asked_NA: Tensor) -> Tensor:
    """Each row told from that figure from which more of the figures is as asked."""
    other = turned(rows_NA)
    right, right_other = (
        (each[:, FIGURES] == asked_NA[:, FIGURES]).sum(1) for each in (rows_NA, other)
    )
    return torch.where((right_other > right)[:, None], other, rows_NA)


def halves(x_N3HW: Tensor, ground_N3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures cut in two between their figures: masks (F, N, H, W) of the left or upper and
    of the other part, whether one is above the other, (N,), and whether there is a gap at all."""
    apparent_NHW = (x_N3HW - ground_N3[:, :, None, None]).norm(dim=1) > APPARENT
    width_x, at_x = widest_gap(apparent_NHW.sum(1))
    width_y, at_y = widest_gap(apparent_NHW.sum(2))
    upright_N = width_y > width_x
    middles = torch.arange(x_N3HW.shape[-1]) + 0.5
    left_NHW = (middles < at_x[:, None])[:, None, :].expand_as(apparent_NHW)
    upper_NHW = (middles < at_y[:, None])[:, :, None].expand_as(apparent_NHW)
    first_NHW = torch.where(upright_N[:, None, None], upper_NHW, left_NHW)
    parted_N = torch.maximum(width_x, width_y) > 0
    return torch.stack([first_NHW, ~first_NHW]).float(), upright_N, parted_N


def widest_gap(filled_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Width and middle of the longest run of empty lines that has a fair share on both sides."""
    size = filled_NW.shape[1]
    line = torch.arange(size)
    before_NW = filled_NW.cumsum(1)
    total_N1 = before_NW[:, -1:]
    balanced = torch.minimum(before_NW, total_N1 - before_NW) >= SHARE * total_N1
    last_NW = torch.where(filled_NW > 0, line, -1).cummax(1).values
    next_NW = torch.where(filled_NW > 0, line, size).flip(1).cummin(1).values.flip(1)
    inside = balanced & (filled_NW == 0) & (last_NW >= 0) & (next_NW < size)
    width_NW = torch.where(inside, next_NW - last_NW - 1, 0)
    widest_N1, at_N1 = width_NW.max(1, keepdim=True)
    middle_N1 = (last_NW + next_NW + 1).gather(1, at_N1) / 2
    return widest_N1[:, 0], middle_N1[:, 0]
