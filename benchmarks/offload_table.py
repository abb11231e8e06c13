"""Rows of `benchmarks.offload` in words, and the ratios that are looked for in them."""

from typing import Any, NamedTuple

Row = dict[str, Any]

EAGER, COMPILED = "ours, resident", "ours, resident, compiled"
PASSING = "ours, 0 blocks stay, 2 slots"
PASSING_COMPILED = f"{PASSING}, compiled"
ALL = "whole job within all GiB"


class Ratio(NamedTuple):
    """Theirs over ours in seconds a row, each with so many rows; at least `goal`."""

    what: str
    ours: str
    mine: int
    theirs: str
    their: int
    goal: float | None = None


class Limit(NamedTuple):
    """One figure of ours, at most `goal`."""

    what: str
    ours: str
    rows: int
    side: int
    field: str
    goal: float


RATIOS = (
    Ratio("resident, over diffusers eager", COMPILED, 4, "diffusers, eager", 1, 1.6),
    Ratio("resident, over diffusers compiled", COMPILED, 4, "diffusers, compiled", 1),
    Ratio("resident, over DiffSynth eager", COMPILED, 4, "DiffSynth, eager", 1, 1.6),
    Ratio("eager, over diffusers eager", EAGER, 1, "diffusers, eager", 1),
    Ratio("eager, over DiffSynth eager", EAGER, 1, "DiffSynth, eager", 1),
    Ratio("batch 16 over diffusers compiled", COMPILED, 16, "diffusers, compiled", 1, 1.8),
    Ratio("batch 16 over DiffSynth eager", COMPILED, 16, "DiffSynth, eager", 1, 1.8),
    Ratio("streamed over resident, batch 8, eager", PASSING, 8, EAGER, 8, 0.97),
    Ratio("streamed over resident, batch 8, compiled", PASSING_COMPILED, 8, COMPILED, 8, 0.97),
    Ratio("streamed over resident, batch 4, eager", PASSING, 4, EAGER, 4),
    Ratio("streamed over resident, batch 4, compiled", PASSING_COMPILED, 4, COMPILED, 4),
    Ratio("streamed, over diffusers model offload", PASSING, 8, "diffusers, model offload", 1, 5),
    Ratio("streamed, over diffusers group block", PASSING, 8, "diffusers, group block", 1, 10),
    Ratio("streamed, over diffusers group leaf", PASSING, 8, "diffusers, group leaf", 1, 10),
    Ratio("streamed, over diffusers sequential", PASSING, 8, "diffusers, sequential", 1, 15),
    Ratio("streamed, over DiffSynth at limit 0", PASSING, 8, "DiffSynth, vram_limit 0", 1, 10),
    Ratio("streamed, over DiffSynth at limit 12", PASSING, 8, "DiffSynth, vram_limit 12", 1),
    Ratio("fp8 products over exact, batch 4", "ours, fp8 products, resident, compiled", 4,
          COMPILED, 4, 1.35),
    Ratio("job within 24 GiB over all", "whole job within 24 GiB", 8, ALL, 8, 0.9),
    Ratio("job within 12 GiB over all", "whole job within 12 GiB", 8, ALL, 8, 0.9),
    Ratio("job within 8 GiB over all", "whole job within 8 GiB", 8, ALL, 8, 0.9),
)  # fmt: skip
LIMITS = (
    Limit("seconds of a step and row, resident", COMPILED, 4, 1024, "seconds_a_row", 0.120),
    Limit("GB at the peak, nothing stays", PASSING, 8, 1024, "peak_gb", 6.0),
)


def row(told: Row) -> str:
    """One measurement, on a line."""
    head = f"{told['name']:<52} {told['side']:>5} ×{told['rows']:<3}"
    if "absent" in told:
        return f"{head} not run: {told['absent']}"
    if "seconds" not in told:
        rest = {k: v for k, v in told.items() if k not in ("name", "side", "rows")}
        return head + "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items()
        )
    words = [f"{1e3 * told['seconds_a_row']:9.2f} ms a row"]
    if told.get("peak_gb") is not None:
        words.append(f"{told['peak_gb']:6.2f} GB")
    if told.get("copied_gb") is not None:
        words.append(f"{told['copied_gb']:7.3f} GB copied, {told['host_waits']} host waits")
    if told.get("deviation") is not None:
        words.append(f"deviation {told['deviation']:.1e}")
    return head + "  ".join(words)


def found(rows: list[Row], name: str, count: int, side: int) -> dict[str, Row]:
    """The fastest measurement of exactly this name, by the part that made it."""
    out: dict[str, Row] = {}
    for one in sorted(rows, key=lambda one: float(one.get("seconds_a_row", 0)), reverse=True):
        if (one["name"], one["rows"], one["side"]) == (name, count, side) and "seconds" in one:
            out[one.get("part", "")] = one
    return out


def ratios(rows: list[Row]) -> list[str]:
    """What is looked for, as far as it was measured: ratios of two rows of one part where one has
    both, which the same process on the same card has measured."""
    out = []
    for ratio in RATIOS:
        for side in sorted({one["side"] for one in rows}, reverse=True):
            us = found(rows, ratio.ours, ratio.mine, side)
            them = found(rows, ratio.theirs, ratio.their, side)
            both = us.keys() & them.keys()
            if not us or not them:
                continue
            ours_s, theirs_s = (
                min(one["seconds_a_row"] for part, one in kind.items() if part in (both or kind))
                for kind in (us, them)
            )
            goal = "" if ratio.goal is None else f" (goal {ratio.goal})"
            out.append(f"  {ratio.what:<48} {side:>5}  {theirs_s / ours_s:6.2f}{goal}")
    if out:
        out = ["", "seconds a row of theirs over ours, above 1 ours is faster", *out]
    limits = [
        f"  {limit.what:<48} {limit.side:>5}  {told[limit.field]:6.3f} (at most {limit.goal:g})"
        for limit in LIMITS
        for told in found(rows, limit.ours, limit.rows, limit.side).values()
        if told.get(limit.field) is not None
    ]
    return [*out, "", *limits] if limits else out
