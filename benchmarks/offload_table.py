"""Rows of `benchmarks.offload` in words, and the ratios that are looked for in them."""

from typing import Any

Row = dict[str, Any]

# what; ours, with so many rows; theirs, with so many; at least
COMPILED, PASSING = "ours, resident, compiled", "ours, 0 blocks stay"
GOALS = (
    ("resident, over diffusers eager", COMPILED, 4, "diffusers, eager", 1, 1.6),
    ("resident, over diffusers compiled", COMPILED, 4, "diffusers, compiled", 1, None),
    ("resident, over DiffSynth eager", COMPILED, 4, "DiffSynth, eager", 1, 1.6),
    ("eager, over diffusers eager", "ours, resident", 1, "diffusers, eager", 1, None),
    ("eager, over DiffSynth eager", "ours, resident", 1, "DiffSynth, eager", 1, None),
    ("streamed over resident, batch 8", PASSING, 8, "ours, resident", 8, 0.97),
    ("streamed over resident, batch 4", PASSING, 4, "ours, resident", 4, None),
    ("streamed batch 8 over diffusers group block", PASSING, 8, "diffusers, group block", 1, 10),
    ("streamed batch 8 over diffusers group leaf", PASSING, 8, "diffusers, group leaf", 1, 10),
    ("streamed batch 8 over diffusers sequential", PASSING, 8, "diffusers, sequential", 1, 15),
    ("streamed batch 8 over DiffSynth at limit 0", PASSING, 8, "DiffSynth, vram_limit 0", 1, 10),
    ("batch 16 over the compiled peer's 1", COMPILED, 16, "diffusers, compiled", 1, 1.8),
    ("fp8 products over exact, batch 4", "ours, fp8 products, resident", 4, COMPILED, 4, 1.35),
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


def found(rows: list[Row], name: str, count: int) -> list[Row]:
    """Measurements of this kind with so many rows; a name covers those it begins."""
    return [
        one
        for one in rows
        if one["name"].startswith(name) and one["rows"] == count and "seconds_a_row" in one
    ]


def ratios(rows: list[Row]) -> list[str]:
    """Theirs over ours in seconds a row, for what both have run at one size; above 1 is faster."""
    out = ["", "ratio of seconds a row, above 1 ours is faster (best of each kind)"]
    for what, ours, mine, theirs, their, goal in GOALS:
        for side in sorted({one["side"] for one in rows}, reverse=True):
            here = [one for one in rows if one["side"] == side]
            us, them = found(here, ours, mine), found(here, theirs, their)
            if not us or not them:
                continue
            times = (min(one["seconds_a_row"] for one in kind) for kind in (them, us))
            theirs_s, ours_s = times
            told = "" if goal is None else f" (goal {goal})"
            out.append(f"  {what:<48} {side:>5}  {theirs_s / ours_s:6.2f}{told}")
    return out if len(out) > 2 else []
