"""What training is worth, with the demo model: what is learned, and that a killed run is no other.

    python -m benchmarks.training [--part chain|resume] [--kills 10] [--folder DIR]

`chain` runs `shapes.chain` and reads its pictures. `resume` kills a run with SIGKILL at random
moments, starts it again each time, and compares every tensor of its last checkpoint (what is
trained, the optimizer, the average) with those of a run that nobody disturbed. Writes
`results/training-<date>.json`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from batch.storage import Storage
from batch.training.checkpoint import PARTS, Checkpoints
from benchmarks import machine
from shapes.chain import Chain, read_measured
from shapes.pictures import write_pictures
from shapes.recipe import ONE

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
STEPS = 60
BEGUN = (" INFO step ", " INFO going on ")  # a line of the log that says that steps are taken


def job_of(folder: Path, name: str) -> Path:
    """A LoRA with two micro-batches a step, dropped captions, an average and a falling rate."""
    told = {
        "output_path": str(folder / name),
        "model": "flux-shapes",
        "torch_dtype": "float32",
        "dataset": str(folder / "latents"),
        "caption_dropout": 0.2,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "lora_rank": 4,
        "learning_rate": 1e-3,
        "lr_schedule": {"kind": "cosine", "warmup_steps": 5},
        "ema": 0.9,
        "checkpoint_steps": 3,
        "workers": "local",
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(told))
    return file


def started(file: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-u", "-m", "jobs.train", "--config", str(file)]
    return subprocess.Popen(words, cwd=ROOT, text=True, stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL)  # fmt: skip


def whole_run(file: Path) -> float:
    """Seconds from the first step to the end."""
    began = 0.0
    with started(file) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if not began and any(words in line for words in BEGUN):
                began = time.monotonic()
    if run.returncode:
        raise SystemExit(f"{file}: the run ended with {run.returncode}")
    return time.monotonic() - began


def cut_run(file: Path, seconds: float) -> bool:
    """Kill it so long after its first step; whether it was over before."""
    with started(file) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if any(words in line for words in BEGUN):
                break
        try:
            return run.wait(timeout=seconds) == 0
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            return False


def resume(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    dice = random.Random(seed)
    write_pictures(folder / "pictures.parquet", ONE.world, 24)
    told = {
        "manifest": str(folder / "pictures.parquet"),
        "output": str(folder / "latents"),
        "target": {"kind": "cache"},
        "engine": {"model": "flux-shapes", "torch_dtype": "float32"},
    }
    (folder / "latents.yaml").write_text(json.dumps(told))
    words = [sys.executable, "-m", "jobs.distill", "--config", str(folder / "latents.yaml")]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    seconds = whole_run(job_of(folder, "quiet"))
    killed = job_of(folder, "killed")
    stood: list[int] = []
    for _ in range(kills):
        if cut_run(killed, dice.uniform(0, 1.5 * seconds / kills)):
            break
        stood.append(max(Checkpoints(Storage(str(folder / "killed"))).steps(), default=0))
    whole_run(killed)
    tensors, other = compared(folder / "quiet", folder / "killed")
    return {"steps": STEPS, "kills": len(stood), "checkpoint_at_each_kill": stood,
            "tensors": tensors, "tensors_that_differ": other}  # fmt: skip


def compared(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many tensors the last checkpoints have, and the names of those that are not equal."""
    left, right = (Checkpoints(Storage(str(folder))).latest() for folder in (one, other))
    if left is None or right is None or left.step != right.step:
        raise SystemExit(f"{one} and {other}: no checkpoint of the same step")
    count, differ = 0, []
    for part in PARTS:
        ours, theirs = getattr(left.state, part), getattr(right.state, part)
        if ours.keys() != theirs.keys():
            raise SystemExit(f"{part}: other tensors")
        count += len(ours)
        differ += [f"{part} {name}" for name in ours if not torch.equal(ours[name], theirs[name])]
    return count, differ


def chain(folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    Chain(folder).run("measure")
    return read_measured(folder) | {"seconds": round(time.monotonic() - began)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("chain", "resume"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    given = parser.parse_args()
    told: dict[str, Any] = {
        "machine": machine.described(),
        "versions": machine.versions(),
        "code": machine.engine_digest(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = (given.folder or Path(name)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if given.part in (None, "resume"):
            told["resume"] = resume(folder, given.kills)
        if given.part in (None, "chain"):
            told["chain"] = chain(folder)
    print(json.dumps(told, indent=2))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"training-{datetime.now(UTC):%Y-%m-%d}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | told, indent=2) + "\n")


if __name__ == "__main__":
    main()
