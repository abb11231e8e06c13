"""CPU seconds per picture of our engine, diffusers and DiffSynth-Studio, at equal output.

    python -m benchmarks.cpu_ratio [--spec tiny|small] [--sittings N] [--rounds N]

Everybody has the same random weights, one process and one thread. First each makes the same
pictures, and nothing is timed unless they agree; then come rounds in which all take turns, so
that what else the machine does falls on all alike. See `benchmarks/README.md`.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import machine, table
from benchmarks.contenders import ENTRIES
from benchmarks.figures import Agreement, Counts, Figures, Subject, Times
from benchmarks.toys import ROWS, STEPS, TEXT_TOKENS, TOYS, Round
from benchmarks.worker import Worker
from tests.parity.agreement import LATENTS, PIXELS_MEAN, deviation
from tests.parity.tiny import write_folder

SIDES = (128, 256)
RESULTS = Path(__file__).parent / "results"

Lane = tuple[Worker, Subject]
Output = dict[str, Tensor]


class OutputDiffersError(Exception):
    """Ours and a peer made different pictures: their times say nothing."""


def round_of(subject: Subject, number: int) -> Round:
    return Round(number=number, side=subject.side, schedule=subject.schedule)


def compare(ours: Subject, mine: Output, peer: Subject, theirs: Output) -> Agreement:
    """OutputDiffersError beyond the bounds that the parity tests set."""
    rows = zip(mine["latents"], theirs["latents"], strict=True)
    difference = mine["pixels"] - theirs["pixels"]
    found = Agreement(
        ours=ours,
        peer=peer,
        latents=max(deviation(a, b) for a, b in rows),
        pixels=(difference.norm() / theirs["pixels"].norm()).item(),
    )
    # so written, a NaN fails too
    if not (found.latents <= LATENTS and found.pixels <= PIXELS_MEAN):
        raise OutputDiffersError(
            f"{table.titled(ours)} and {peer.name}, {peer.schedule}: "
            f"latents differ by {found.latents:.1e} σ ({LATENTS:.0e} allowed), "
            f"pixels by {found.pixels:.1e} ({PIXELS_MEAN:.0e} allowed)"
        )
    return found


def check(lanes: Sequence[Lane], folder: Path) -> tuple[list[Agreement], list[Counts]]:
    """Each makes the pictures of round 0, which warms it up as well."""
    outputs: dict[Subject, Output] = {}
    counts = []
    for worker, subject in lanes:
        file = folder / "output.safetensors"
        parts = worker.check(round_of(subject, 0), file).counts
        counts.append(Counts(subject=subject, parts=parts))
        outputs[subject] = {name: tensor.clone() for name, tensor in load_file(file).items()}
        file.unlink()
    pairs = [
        compare(ours, outputs[ours], peer, outputs[peer])
        for peer in outputs
        for ours in outputs
        if ours.ours and not peer.ours and ours.like(peer)
    ]
    return pairs, counts


def clock(lanes: Sequence[Lane], times: dict[Subject, Times], numbers: Sequence[int]) -> None:
    """Round by round, each lane once; who begins moves on from round to round."""
    for number in numbers:
        first = number % len(lanes)
        for worker, subject in (*lanes[first:], *lanes[:first]):
            took = worker.time(round_of(subject, number))
            mine = times.setdefault(subject, Times(subject=subject, user=[], system=[], wall=[]))
            mine.user.append(took.user / ROWS)
            mine.system.append(took.system / ROWS)
            mine.wall.append(took.wall / ROWS)


def lanes_of(workers: Sequence[Worker]) -> list[Lane]:
    return [
        (worker, Subject(name=worker.entry.name, side=side, schedule=schedule))
        for side in SIDES
        for worker in workers
        for schedule in worker.entry.schedules
    ]


def measure(toy: str, sittings: int, rounds: int) -> tuple[Figures, dict[str, str]]:
    """All figures of one toy model, and the versions of what was timed.

    A sitting has processes of its own: how often a process asks the system for memory, which is
    up to a third of its time, depends on how its heap happens to lie, and stays as it is.
    """
    spec, there = TOYS[toy], [entry for entry in ENTRIES.values() if entry.installed]
    times: dict[Subject, Times] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name), spec)
        for sitting in range(sittings):
            with ExitStack() as stack:
                started = [Worker(entry, toy, folder) for entry in there]
                workers = [stack.enter_context(closing(worker)) for worker in started]
                versions = {k: v for worker in workers for k, v in worker.loaded().items()}
                agreements, counts = check(lanes_of(workers), folder)
                first = 1 + sitting * rounds
                clock(lanes_of(workers), times, range(first, first + rounds))
        settings = setting(load_file(folder / "flux1-tiny.safetensors"), sittings, rounds)
    absent = sorted({entry.library for entry in ENTRIES.values()} - {e.library for e in there})
    figures = Figures(
        toy=toy,
        setting=settings,
        absent=absent,
        agreements=agreements,
        counts=counts,
        times=[times[subject] for _, subject in lanes_of(workers)],
    )
    return figures, versions


def setting(weights: dict[str, Tensor], sittings: int, rounds: int) -> dict[str, Any]:
    parameters = sum(tensor.numel() for tensor in weights.values())
    return {
        "transformer": f"{parameters / 1e6:.1f} M parameters",
        "dtype": "float32",
        "steps": STEPS,
        "text tokens": TEXT_TOKENS,
        "pictures a round": ROWS,
        "sittings": sittings,
        "rounds a sitting": rounds,
    }


def keep(file: Path, toy: str, values: dict[str, Any]) -> None:
    """Beside the other toy models of that day."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(known | {toy: values}, indent=1) + "\n")
    part.rename(file)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    spec: Annotated[
        Literal["tiny", "small"] | None, typer.Option(help="One toy model; without it, each.")
    ] = None,
    sittings: Annotated[int, typer.Option(min=1, help="Each in new processes.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Of each sitting.")] = 2,
) -> None:
    """CPU seconds per picture of ours and of two peers, at equal output."""
    torch.set_num_threads(1)
    for toy in [spec] if spec else TOYS:
        now = datetime.now(UTC)
        figures, measured = measure(toy, sittings, rounds)
        about = {
            "date": now.isoformat(timespec="seconds"),
            "machine": machine.described(),
            "flux_engine sources": machine.engine_digest(),
            "versions": machine.versions() | measured,
        }
        typer.echo("\n".join(("", *table.lines(figures))))
        keep(RESULTS / f"cpu_ratio-{now.date()}.json", toy, about | figures.as_json())


if __name__ == "__main__":
    app()
