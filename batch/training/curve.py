"""Curves over steps as a picture in SVG, which needs nothing beside it."""

import math
from collections.abc import Mapping, Sequence
from html import escape

POINTS = 400  # of a curve; more are averaged
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 240, 64, 24, 10
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")

Points = Sequence[tuple[float, float]]


def chart(curves: Mapping[str, Points], *, log: bool = False) -> str:
    """The curves that have points, named below; on a log axis only what is above 0 is shown."""
    shown = {
        name: thinned([(x, y) for x, y in points if not log or y > 0])
        for name, points in curves.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return "<p>nothing to draw</p>"
    xs = [x for points in shown.values() for x, _ in points]
    ys = [scaled(y, log=log) for points in shown.values() for _, y in points]
    low, high = min(ys), max(ys)
    if high - low < 1e-12:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / max(max(xs) - min(xs), 1e-9)
        up = (scaled(y, log=log) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - 8), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    parts = [*grid(low, high, log=log), *ends(min(xs), max(xs))]
    legend = []
    for n, (name, points) in enumerate(shown.items()):
        colour = COLOURS[n % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
            if len(points) > 1
            else dot(*place(*points[0]), colour)
        )
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}</span>')
    drawn = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{drawn}</svg>'
        f'<p class="legend">{"".join(legend)}</p>'
    )


def dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'


def scaled(y: float, *, log: bool) -> float:
    return math.log10(y) if log else y


def thinned(points: Points) -> Points:
    """At most so many points, each the mean of its neighbours."""
    every = -(-len(points) // POINTS) or 1
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    return [(mean([x for x, _ in group]), mean([y for _, y in group])) for group in groups]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def grid(low: float, high: float, *, log: bool) -> list[str]:
    """Five lines across, with their values."""
    out = []
    for n in range(5):
        y = HEIGHT - BOTTOM - n / 4 * (HEIGHT - BOTTOM - TOP)
        value = low + n / 4 * (high - low)
        told = f"{10**value if log else value:.3g}"
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{told}</text>'
        )
    return out


def ends(first: float, last: float) -> list[str]:
    return [
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:g}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">step {last:g}</text>'
    ]
