"""The ruler: what figures a picture shows, with no learned model, and how often it is what was
asked.

Ground is the border's median; a figure's colour that of the pixels furthest from the ground;
coverage the projection on the line between the two; place the coverage's centroid; shape and
size the outline that overlaps it best there. Shape letters: N pictures, A attributes, H and W
pixels.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shapes.figures import COLOURS, coverage, palette
from shapes.world import Reading, World, blocks

CORE, FAINT = 0.9, 0.2  # of the greatest distance from the ground; of full coverage
VISIBLE, OVERLAP = 0.12, 0.6  # below these there is no figure, or none of the known outlines


@dataclass(frozen=True)
class Figure:
    """Indices of colour, shape and size, the centroid in pixels, and the overlap; all (N,)."""

    colour: Tensor
    shape: Tensor
    size: Tensor
    x: Tensor
    y: Tensor
    overlap: Tensor


def in_blocks(read: Callable[[Tensor], Reading], pictures_N3HW: Tensor, size: int) -> Reading:
    """The readings of a few pictures at a time, as one."""
    parts = [read(part.float().clamp(0, 1)) for part in blocks(pictures_N3HW, size)]
    return Reading(
        torch.cat([part.rows for part in parts]), torch.cat([part.overlap for part in parts])
    )


def read_figure(
    x_N3HW: Tensor,
    ground_N3: Tensor,
    quantile: float,
    outlines: Sequence[str],
    radii: Sequence[float],
    within_NHW: Tensor | None = None,
) -> Figure:
    """The one figure on the ground, or the one `within` a part of the picture.

    Of the distances from the ground, those above the quantile must be the figure's.
    """
    away_N3HW = x_N3HW - ground_N3[:, :, None, None]
    distance_NHW = away_N3HW.norm(dim=1)
    if within_NHW is not None:
        distance_NHW = distance_NHW * within_NHW
    furthest_N = distance_NHW.flatten(1).quantile(quantile, dim=1)
    core_NHW = (distance_NHW >= CORE * furthest_N[:, None, None]).float()
    weight_N = core_NHW.sum((1, 2)).clamp_min(1)
    figure_N3 = (x_N3HW * core_NHW[:, None]).sum((2, 3)) / weight_N[:, None]

    line_N3 = figure_N3 - ground_N3
    along_NHW = (away_N3HW * line_N3[:, :, None, None]).sum(1)
    cover_NHW = (along_NHW / line_N3.square().sum(1).clamp_min(1e-3)[:, None, None]).clamp(0, 1)
    cover_NHW = cover_NHW * (cover_NHW > FAINT)
    if within_NHW is not None:
        cover_NHW = cover_NHW * within_NHW
    x_N, y_N = centroid(cover_NHW)
    shape_N, size_N, overlap_N = best_outline(cover_NHW, x_N, y_N, outlines, radii)
    return Figure(
        colour=torch.cdist(figure_N3, palette(COLOURS)).argmin(1),
        shape=shape_N,
        size=size_N,
        x=x_N,
        y=y_N,
        overlap=torch.where(furthest_N < VISIBLE, 0.0, overlap_N),
    )


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


def best_outline(
    cover_NHW: Tensor, x_N: Tensor, y_N: Tensor, outlines: Sequence[str], radii: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, size and soft intersection over union of the closest template."""
    overlaps = []
    for outline in outlines:
        for radius in radii:
            r_N = torch.full_like(x_N, radius)
            template = coverage(outline, x_N, y_N, r_N, cover_NHW.shape[-1])
            shared = torch.minimum(cover_NHW, template).sum((1, 2))
            overlaps.append(shared / torch.maximum(cover_NHW, template).sum((1, 2)).clamp_min(1e-3))
    overlap_N, which_N = torch.stack(overlaps).max(0)
    return which_N // len(radii), which_N % len(radii), overlap_N


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


def score(world: World, pictures_N3HW: Tensor, asked_NA: Tensor) -> Score:
    """How many pictures show the attributes that were asked of them."""
    reading = world.read(pictures_N3HW, asked_NA)
    right_NA = reading.rows == asked_NA
    complete_N = right_NA.all(1) & (reading.overlap > OVERLAP)
    shares = right_NA.float().mean(0).tolist()
    return Score(
        count=len(asked_NA),
        by_attribute=dict(zip(world.attributes, shares, strict=True)),
        all=complete_N.float().mean().item(),
        overlap=reading.overlap.mean().item(),
    )
