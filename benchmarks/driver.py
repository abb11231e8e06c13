"""Drivers of sleeping engines, each in a process of its own that imports what a driver imports.

    python -m benchmarks.driver million FOLDER      a large manifest, until its first row
    python -m benchmarks.driver stopped FOLDER      a run that somebody stops

Both are started by `benchmarks.spine`, which makes the manifest. Torch would hide what they weigh.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from batch.lane import MakeWorker
from batch.run import checked_plan, run
from jobs import cli
from schemas.jobs import GenerateJob, Job

SAMPLING = {
    "height": 16,
    "width": 16,
    "embedded_guidance": 3.5,
    "num_inference_steps": 1,
    "t5_sequence_length": 16,
}


def asked(folder: Path, **values: Any) -> GenerateJob:
    """A resolved job over the manifest in a folder."""
    places = {"manifest": str(folder / "manifest.parquet"), "output": str(folder / "out")}
    return GenerateJob.parse(places | {"workers": 1, "sampling": SAMPLING} | values)


class Late:
    """A sleeping worker's factory that is imported where the worker is."""

    def __init__(self, job: Job, roots: tuple[str, ...], compute: float) -> None:
        assert isinstance(job, GenerateJob)
        self.job, self.roots, self.compute = job, roots, compute

    def __call__(self, crumb: Path) -> Any:
        from benchmarks.sleeping import Factory, Load

        return Factory(Load(self.compute), self.job, self.roots)(crumb)


def late(compute: float) -> Callable[[Job, tuple[str, ...]], MakeWorker]:
    return lambda job, roots: Late(job, roots, compute)


def peak() -> int:
    """Bytes that this process had in memory at most. Not `ru_maxrss`, which begins with that of the
    process that has started this one."""
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmHWM:") + 1]) * 1024


def million(folder: Path) -> dict[str, Any]:
    """Seconds from the call to the first row, and what the driver takes at most until then."""
    job = asked(folder)
    ray.init(address=os.environ["RAY_ADDRESS"], configure_logging=False)
    connected = peak()
    begun = time.time()
    first: list[float] = []

    def stop() -> bool:
        notes = Path(f"{job.output}.notes")
        if not first and notes.is_file():
            told = map(json.loads, notes.read_text().splitlines())
            first.extend(one["at"] for one in told if one["what"] == "first row")
        return bool(first)

    plan = checked_plan(job)
    planned = time.time() - begun
    run(job, *plan, lambda: stop, late(0.001))
    assert "torch" not in sys.modules
    return {
        "plan s": round(planned, 1),
        "to the first row s": round(first[0] - begun, 1),
        "driver's peak MB": round(peak() / 1e6),
        "of that before planning MB": round(connected / 1e6),
    }


def stopped(folder: Path) -> int:
    """Half a second a row, micro-batches of four, on a Ray of its own; the exit status."""
    cli.start_logging()
    stop = cli.StopSignal()
    job = asked(folder, workers=2)
    try:
        _, complete = run(job, *checked_plan(job), lambda: cli.start_ray(stop), late(0.5))
    except cli.Stopped:
        return cli.STOPPED
    finally:
        ray.shutdown()
    return cli.COMPLETE if complete else cli.STOPPED


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["million", place]:
            print(json.dumps(million(Path(place))))
        case ["stopped", place]:
            sys.exit(stopped(Path(place)))
        case _:
            sys.exit(__doc__)
