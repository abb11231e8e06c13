"""The ruler: which attributes a picture shows and a caption asks for, with no learned model.

Ground is the border's median; the figure's colour that of the pixels furthest from the ground;
coverage the projection on the line between the two; place the coverage's centroid; shape and
size the outline that overlaps it best there. Shape letters: N pictures, H and W pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shapes.world import (
    ATTRIBUTES,
    COLOURS,
    GROUNDS,
    MARGIN,
    OUTLINES,
    PITCH,
    PLACES,
    RADII,
    SHAPE_WORDS,
    SHAPES,
    blocks,
    coverage,
    palette,
    radii,
)

AT_ONCE = 64  # pictures: larger blocks fall out of the processor's cache
CORE, FAINT = 0.9, 0.2  # of the greatest distance from the ground; of full coverage
VISIBLE, OVERLAP = 0.12, 0.6  # below these there is no figure, or none of the known outlines


@dataclass(frozen=True)
class Reading:
    """Attributes (N, 5), and how well the best outline overlaps what is there, (N,)."""

    rows: Tensor
    overlap: Tensor


def measure(pictures_N3HW: Tensor, outlines: Sequence[str] = SHAPES) -> Reading:
    """Read pictures in 0…1; shapes are told apart among `outlines`, a prefix of `OUTLINES`."""
    parts = [measure_block(part.float(), outlines) for part in blocks(pictures_N3HW, AT_ONCE)]
    return Reading(
        torch.cat([part.rows for part in parts]), torch.cat([part.overlap for part in parts])
    )


def measure_block(x_N3HW: Tensor, outlines: Sequence[str]) -> Reading:
    x_N3HW = x_N3HW.clamp(0, 1)
    ground_N3 = border(x_N3HW).median(dim=2).values
    away_N3HW = x_N3HW - ground_N3[:, :, None, None]
    distance_NHW = away_N3HW.norm(dim=1)
    furthest_N = distance_NHW.flatten(1).quantile(0.985, dim=1)
    core_NHW = (distance_NHW >= CORE * furthest_N[:, None, None]).float()
    weight_N = core_NHW.sum((1, 2)).clamp_min(1)
    figure_N3 = (x_N3HW * core_NHW[:, None]).sum((2, 3)) / weight_N[:, None]

    line_N3 = figure_N3 - ground_N3
    along_NHW = (away_N3HW * line_N3[:, :, None, None]).sum(1)
    cover_NHW = (along_NHW / line_N3.square().sum(1).clamp_min(1e-3)[:, None, None]).clamp(0, 1)
    cover_NHW = cover_NHW * (cover_NHW > FAINT)
    x_N, y_N = centroid(cover_NHW)
    shape_N, size_N, overlap_N = best_outline(cover_NHW, x_N, y_N, outlines)
    rows = {
        "colour": torch.cdist(figure_N3, palette(COLOURS)).argmin(1),
        "shape": shape_N,
        "place": 3 * cell(y_N) + cell(x_N),
        "size": size_N,
        "ground": torch.cdist(ground_N3, palette(GROUNDS)).argmin(1),
    }
    overlap_N = torch.where(furthest_N < VISIBLE, 0.0, overlap_N)
    return Reading(torch.stack([rows[name] for name in ATTRIBUTES], dim=1), overlap_N)


def border(x_N3HW: Tensor) -> Tensor:
    """The outer two pixels, (N, 3, count)."""
    sides = (x_N3HW[:, :, :2], x_N3HW[:, :, -2:], x_N3HW[..., :2], x_N3HW[..., -2:])
    return torch.cat([side.flatten(2) for side in sides], dim=2)


def centroid(cover_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Across and down, in pixels."""
    middles = torch.arange(cover_NHW.shape[-1], dtype=torch.float32) + 0.5
    total_N = cover_NHW.sum((1, 2)).clamp_min(1e-3)
    return (
        (cover_NHW.sum(1) * middles).sum(1) / total_N,
        (cover_NHW.sum(2) * middles).sum(1) / total_N,
    )


def cell(position_N: Tensor) -> Tensor:
    """Which of the three rows or columns of places is nearest."""
    return ((position_N - MARGIN) / PITCH).round().clamp(0, 2).long()


def best_outline(
    cover_NHW: Tensor, x_N: Tensor, y_N: Tensor, outlines: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, size and soft intersection over union of the closest template."""
    overlaps = []
    for outline in outlines:
        for radius in radii():
            template = coverage(outline, x_N, y_N, radius.expand(len(x_N)), cover_NHW.shape[-1])
            shared = torch.minimum(cover_NHW, template).sum((1, 2))
            overlaps.append(shared / torch.maximum(cover_NHW, template).sum((1, 2)).clamp_min(1e-3))
    overlap_N, which_N = torch.stack(overlaps).max(0)
    return which_N // len(RADII), which_N % len(RADII), overlap_N


def parse(caption: str) -> Tensor | None:
    """The row of attributes that a caption asks for; None if it does not name all five."""
    text = " ".join(re.findall(r"[a-z]+", caption.lower()))
    found = {
        "colour": first_named(text, tuple(COLOURS)),
        "shape": first_named(text, SHAPE_WORDS),
        "place": first_named(text, PLACES),
        "size": first_named(text, tuple(RADII)),
        "ground": first_named(text, tuple(GROUNDS)),
    }
    if None in found.values():
        return None
    return torch.tensor([found[name] for name in ATTRIBUTES])


def first_named(text: str, names: Sequence[str]) -> int | None:
    """Index of the longest name that occurs as whole words: "top left" also says "top"."""
    for name in sorted(names, key=len, reverse=True):
        if re.search(rf"\b{name}\b", text):
            return names.index(name)
    return None


@dataclass(frozen=True)
class Score:
    """Shares of pictures that show what was asked, by attribute and all at once."""

    count: int
    by_attribute: dict[str, float]
    all: float
    overlap: float

    def as_dict(self) -> dict[str, float]:
        shares = {**self.by_attribute, "all": self.all, "overlap": self.overlap}
        return {name: round(share, 4) for name, share in shares.items()}


def score(pictures_N3HW: Tensor, asked_N5: Tensor, outlines: Sequence[str] | None = None) -> Score:
    """How many pictures show the attributes that were asked of them."""
    reserved = bool((asked_N5[:, 1] >= len(SHAPES)).any())
    reading = measure(pictures_N3HW, outlines or (OUTLINES if reserved else SHAPES))
    right_N5 = reading.rows == asked_N5
    complete_N = right_N5.all(1) & (reading.overlap > OVERLAP)
    shares = right_N5.float().mean(0).tolist()
    return Score(
        count=len(asked_N5),
        by_attribute=dict(zip(ATTRIBUTES, shares, strict=True)),
        all=complete_N.float().mean().item(),
        overlap=reading.overlap.mean().item(),
    )
