"""A cluster of two nodes on this machine, and one job at a time on it: a program of its own.

    python -m tests.batch.cluster FOLDER HUB

Each node has a model store of its own, as machines have. Prints what happened as one JSON line.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from batch import nodes
from batch.actor import ShardWorker
from batch.errors import JobError
from batch.run import checked_plan, run
from flux_engine.weights.source import ModelSource, fetch
from schemas.jobs import GenerateJob
from tests.batch.doubles import PainterFactory, PainterStage, job, write_manifest

MODEL = ModelSource(model_id="owner/model", origin_file_pattern="weights")
STORE = "FLUXMILL_MODELS"
PLACE = Path("_run") / "nodes"


class DownloadingStage(PainterStage):
    """Fetches its weights as an engine does, and leaves a note of where it worked."""

    def setup(self) -> None:
        super().setup()
        (weights,) = fetch(MODEL)
        assert weights.stat().st_size == 3 << 20
        notes = Path(self.job.output) / PLACE
        notes.mkdir(parents=True, exist_ok=True)
        self.note = notes / f"{Path(os.environ[STORE]).name}-{os.getpid()}"
        self.note.touch()

    def __call__(self, *arguments: Any) -> Any:
        with self.note.open("a") as file:
            file.write("shard\n")
        return super().__call__(*arguments)


class Factory(PainterFactory):
    def __call__(self, crumb: Path) -> ShardWorker:
        return ShardWorker(self.job, DownloadingStage(self.job, self.roots), crumb)


def sees(path: Path) -> bool:
    """As if the second node had a disk of its own."""
    return path.is_file() and not os.environ[STORE].endswith("b")


class Machines:
    """Nodes a, b, …, with two CPUs each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(
            initialize_head=True, connect=False, head_node_args=self._arguments("a")
        )

    def _arguments(self, name: str) -> dict[str, Any]:
        return {
            "num_cpus": 2,
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
            "env_vars": {STORE: str(self.folder / name)},
        }

    def add(self, name: str) -> Any:
        return self.cluster.add_node(**self._arguments(name))

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


def asked(folder: Path, name: str, rows: int, workers: object, seconds: float = 0.1) -> GenerateJob:
    prompts, keys = [f"sleep {seconds}"] * rows, [f"k{i:03d}" for i in range(rows)]
    manifest = write_manifest(folder / name / "m.parquet", {"prompt": prompts, "key": keys})
    return job(folder / name, manifest, workers=workers)


def notes(asked: GenerateJob) -> dict[str, int]:
    """Shards that each node has begun."""
    out: dict[str, int] = {}
    for note in (Path(asked.output) / PLACE).iterdir():
        node = note.name.partition("-")[0]
        out[node] = out.get(node, 0) + len(note.read_text().splitlines())
    return out


def finished(asked: GenerateJob) -> int:
    data = Path(asked.output) / "data"
    return len(list(data.iterdir())) if data.is_dir() else 0


def main(folder: Path, hub: str) -> None:
    import ray

    os.environ |= {"MODELSCOPE_ENDPOINT": hub, "MODELSCOPE_CACHE": str(folder / "cache")}
    machines = Machines(folder)
    second = machines.add("b")
    os.environ[STORE] = str(folder / "a")
    ray.init(address=machines.cluster.address, configure_logging=False, log_to_driver=False)
    told: dict[str, Any] = {}

    both = asked(folder, "both", 48, 4)
    report, _ = run(both, *checked_plan(both), lambda: lambda: False, Factory)
    told["both"] = {"done": report.done, "lost": report.lost_workers, "notes": notes(both)}

    changing = asked(folder, "changing", 240, [1, 4], 0.2)
    state = {"killed": 0.0, "added": 0.0}

    def events() -> bool:
        """Asked a few times a second; never says stop."""
        if not state["killed"] and finished(changing) >= 10:
            machines.kill(second)
            state["killed"] = time.time()
        if state["killed"] and not state["added"] and finished(changing) >= 14:
            machines.add("c")
            state["added"] = time.time()
        return False

    report, complete = run(changing, *checked_plan(changing), lambda: events, Factory)
    told["changing"] = {
        "complete": complete,
        "done": report.done,
        "lost": report.lost_workers,
        "notes": notes(changing),
        "rejected": report.rejected,
    }

    machines.add("b")
    nodes.is_file = sees
    try:
        alone = asked(folder, "alone", 4, 2)
        run(alone, *checked_plan(alone), lambda: lambda: False, Factory)
    except JobError as error:
        told["refused"] = str(error)
    print(json.dumps(told), flush=True)
    ray.shutdown()
    machines.cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
