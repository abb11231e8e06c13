"""How many rows a second come out as targets, against pictures of the same engine.

    python -m benchmarks.targets [--rows N] [--rounds N] [--save]

The bundled model in this process, one worker, the same prompts and steps: pictures by the main job,
then `pair` and `path` targets, in turns; the least of the rounds counts. What is measured is a
shard, from its rows to its published file, in CPU seconds of all threads. Prints ratios against
the pictures.
"""

import argparse
import json
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batch.actor import ShardWorker
from batch.run import checked_plan
from batch.stages.distill import DistillStage
from batch.stages.generate import GenerateStage
from benchmarks.machine import described, versions
from jobs.work import resolved
from schemas.jobs import DistillJob, GenerateJob

RESULTS = Path(__file__).parent / "results"
GOALS = {"pair": 0.95, "path, 4 segments": 0.90, "path": 0.90}
TARGETS: dict[str, dict[str, Any]] = {
    "pair": {"kind": "pair"},
    "path, 4 segments": {"kind": "path", "segments": 4},
    "path": {"kind": "path"},
}


def job_of(folder: Path, name: str, target: dict[str, Any] | None) -> GenerateJob | DistillJob:
    told: dict[str, Any] = {
        "manifest": str(folder / "m.parquet"),
        "output": str(folder / name.replace(" ", "-")),
        "rows_per_shard": 100_000,
        "engine": {"device": "cpu", "torch_dtype": "float32"},
    }
    if target is None:
        return resolved(GenerateJob.parse(told))
    return resolved(DistillJob.parse(told | {"target": target}))


def seconds(folder: Path, name: str, target: dict[str, Any] | None) -> float:
    """CPU seconds of one shard of all rows, the engine's load apart."""
    job = job_of(folder, name, target)
    shutil.rmtree(job.output, ignore_errors=True)
    _, (shard,) = checked_plan(job)
    roots = (str(folder),)
    distills = isinstance(job, DistillJob)
    stage = DistillStage(job, roots) if distills else GenerateStage(job, roots)
    worker = ShardWorker(job, stage)
    worker.output.claim(job.recipe())
    worker.setup()
    began = time.process_time()
    report = worker(shard)
    took = time.process_time() - began
    assert report.rejected == 0
    return took


def measured(rows: int, rounds: int) -> dict[str, float]:
    """The least seconds of each kind."""
    out: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prompts = [f"a {'small' if i % 2 else 'large'} red circle, {i}" for i in range(rows)]
        pq.write_table(pa.table({"prompt": prompts}), folder / "m.parquet")
        for _ in range(rounds):
            for name, target in {"pictures": None, **TARGETS}.items():
                out.setdefault(name, []).append(seconds(folder, name, target))
    return {name: min(times) for name, times in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/targets-<date>.json")
    told = parser.parse_args()
    torch.set_num_threads(1)
    least = measured(told.rows, told.rounds)
    ratios = {name: least["pictures"] / taken for name, taken in least.items()}
    for name, taken in least.items():
        goal = f"  goal {GOALS[name]:.2f}" if name in GOALS else ""
        print(f"{name:18} {told.rows / taken:7.2f} rows a CPU second  × {ratios[name]:.3f}{goal}")
    if told.save:
        date = datetime.now(UTC).date().isoformat()
        found = {
            "rows": told.rows,
            "seconds": least,
            "ratios": ratios,
            "machine": described(),
            "versions": versions(),
        }
        (RESULTS / f"targets-{date}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
