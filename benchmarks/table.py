"""Figures as text to read."""

from collections.abc import Iterator, Sequence

from benchmarks.contenders import ENTRIES
from benchmarks.figures import Figures, Subject, Times

HEADS = ("cpu", "cpu median", "user", "system median", "wall", "wall median")
SHOWN = ("cpu", "cpu median", "user")  # of the ratios


def lines(figures: Figures) -> Iterator[str]:
    """One toy model's table."""
    yield f"{figures.toy}: " + ", ".join(f"{k} {v}" for k, v in figures.setting.items())
    yield from (f"{name} is not installed: left out" for name in figures.absent)
    yield ""
    yield from aligned(time_rows(figures))
    yield ""
    yield from aligned(ratio_rows(figures))
    yield ""
    yield from aligned(count_rows(figures))
    yield ""
    yield from agreement_lines(figures)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *padded)).rstrip()


def time_rows(figures: Figures) -> list[list[str]]:
    return [["seconds per picture", "noise levels", *HEADS], *map(time_row, figures.times)]


def time_row(times: Times) -> list[str]:
    summary = times.summary()
    seconds = (f"{summary[head]:.3f}" for head in HEADS)
    return [titled(times.subject), times.subject.schedule, *seconds]


def ratio_rows(figures: Figures) -> list[list[str]]:
    body = [
        [
            f"{titled(ratio.peer)} / {ratio.ours.name}",
            ratio.peer.schedule,
            *(f"{ratio.seconds[head]:.2f}" for head in SHOWN),
        ]
        for ratio in figures.ratios()
    ]
    return [["peer / ours; above 1 ours is faster", "noise levels", *SHOWN], *body]


def count_rows(figures: Figures) -> list[list[str]]:
    counted = [(c, c.per_picture()) for c in figures.counts]
    head = [*counted[0][1], "modulations per batch"]
    body = [
        [
            titled(counts.subject),
            counts.subject.schedule,
            *(f"{value:g}" for value in per_picture.values()),
            f"{counts.modulations(ENTRIES[counts.subject.name].batch):g}",
        ]
        for counts, per_picture in counted
    ]
    return [["counts per picture", "noise levels", *head], *body]


def agreement_lines(figures: Figures) -> Iterator[str]:
    yield "largest difference between ours and a peer (latents: σ, pixels: relative norm)"
    for peer in dict.fromkeys(a.peer.name for a in figures.agreements):
        found = [a for a in figures.agreements if a.peer.name == peer]
        latents, pixels = max(a.latents for a in found), max(a.pixels for a in found)
        yield f"  {peer}: latents {latents:.1e}, pixels {pixels:.1e}"


def titled(subject: Subject) -> str:
    return f"{subject.side}² {subject.name}"
