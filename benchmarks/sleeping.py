"""An engine that sleeps, and runs of it that are timed: what the benchmarks of the spine share."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from batch.actor import ShardWorker
from batch.media import to_bytes
from batch.run import checked_plan, run
from batch.stages.generate import Asked, GenerateStage
from benchmarks.driver import asked, peak
from flux_engine.pictures import to_image
from flux_engine.request import ONLOOKER, Generation, GenerationRequest, Outcome, Watch
from schemas.jobs import GenerateJob, Job
from schemas.records import ImageRecord, Record

MICRO_BATCH = 4
DOT = to_bytes(to_image(torch.zeros(3, 1, 1)), "png", 0)  # the page wants to open a picture


@dataclass(frozen=True)
class Load:
    """What a row costs: seconds of the card and of an encoder, bytes of its picture. `weighed`: the
    memory is noted after each shard, which costs ms."""

    compute: float = 0.0
    encode: float = 0.0
    size: int = 256
    weighed: bool = False


class Notes:
    """Lines about what happened when, of any process of one run."""

    def __init__(self, job: GenerateJob) -> None:
        self.path = Path(f"{job.output}.notes")

    def add(self, what: str, **told: Any) -> None:
        line = json.dumps({"what": what, "at": time.time(), "pid": os.getpid()} | told) + "\n"
        with self.path.open("a") as file:
            file.write(line)

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class Sleeper:
    """An engine that takes its time."""

    def __init__(self, load: Load, notes: Notes) -> None:
        self.load, self.notes, self.made = load, notes, 0

    def each(
        self, requests: Sequence[GenerationRequest], *, watch: Watch = ONLOOKER
    ) -> Iterator[tuple[int, Outcome]]:
        for first in range(0, len(requests), MICRO_BATCH):
            if watch.leaving():
                return
            batch = range(first, min(first + MICRO_BATCH, len(requests)))
            watch.at("denoise", batch)
            if not self.made:
                self.notes.add("first row")
            self.made += len(batch)
            time.sleep(self.load.compute * len(batch))
            for i in batch:
                yield (
                    i,
                    Generation(
                        pixels=torch.zeros(3, 1, 1),
                        latents=torch.zeros(1),
                        sigma_shift=1.0,
                        micro_batch=MICRO_BATCH,
                        tokens_dropped=0,
                    ),
                )


class SleeperStage(GenerateStage):
    def __init__(self, job: GenerateJob, roots: tuple[str, ...], load: Load) -> None:
        super().__init__(job, roots)
        self.load, self.notes = load, Notes(job)
        self.noise = np.random.default_rng(0).bytes(load.size)

    def setup(self) -> None:
        self.engine = Sleeper(self.load, self.notes)
        self.fingerprint = {"weights": {"sleeper": "1"}}

    def __call__(self, wishes: Any, file: str, listener: Any) -> Any:
        count = 0
        for item in super().__call__(wishes, file, listener):
            count += 1
            yield item
        told = {"rss": rss(), "peak": peak()} if self.load.weighed else {}
        self.notes.add("rows", count=count, cpu=time.process_time(), **told)

    def _record(self, asked: Asked, made: Generation, picture: Image.Image) -> Record:  # noqa: ARG002
        time.sleep(self.load.encode)
        row = asked.wish.row
        turn = asked.request.seed % self.load.size  # a picture of its own at the price of a copy
        noise = self.noise[turn:] + self.noise[:turn]
        assert made.micro_batch == MICRO_BATCH
        return ImageRecord(
            key=row.key,
            sample=asked.wish.sample,
            prompt=asked.request.prompt,
            image=DOT + noise,
            **asked.sampling.model_dump()
            | {
                "seed": asked.request.seed,
                "sigma_shift": 1.0,
                "micro_batch": MICRO_BATCH,
                "tokens_dropped": 0,
            },
        )


@dataclass(frozen=True)
class Factory:
    """Makes sleeping workers; `run` asks for one by job and roots."""

    load: Load
    job: GenerateJob | None = None
    roots: tuple[str, ...] = ()

    def of(self, job: Job, roots: tuple[str, ...]) -> "Factory":
        assert isinstance(job, GenerateJob)
        return Factory(self.load, job, roots)

    def __call__(self, crumb: Path) -> ShardWorker:
        assert self.job is not None
        return ShardWorker(self.job, SleeperStage(self.job, self.roots, self.load), crumb)


def rss() -> int:
    """Bytes of this process that are its own."""
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return sum(int(fields[fields.index(name) + 1]) * 1024 for name in PRIVATE)


PRIVATE = ("Private_Clean:", "Private_Dirty:")


def job_of(folder: Path, rows: int, *, keys: bool = True, **values: Any) -> GenerateJob:
    """A resolved job over a new manifest of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "manifest.parquet", rows, keys=keys)
    return asked(folder, **values)


def write_rows(path: Path, rows: int, *, keys: bool) -> None:
    columns = {"prompt": pa.array(["a fox in the snow"]).take(pa.array(np.zeros(rows, np.int32)))}
    if keys:
        columns["key"] = pa.array([f"k{i}" for i in range(rows)])
    pq.write_table(pa.table(columns), path)


def timed_run(job: GenerateJob, load: Load) -> dict[str, Any]:
    """Plan and run; seconds from the call, and what the workers wrote down."""
    began = time.time()
    plan = checked_plan(job)
    planned = time.time()
    report, complete = run(job, *plan, lambda: lambda: False, Factory(load).of)
    assert complete
    ended = time.time()
    notes = Notes(job).read()
    return {
        "planned": planned - began,
        "wall": ended - began,
        "began": began,
        "ended": ended,
        "busy": report.busy_seconds,
        "notes": notes,
    }


def at(notes: Sequence[dict[str, Any]], what: str) -> list[float]:
    return [note["at"] for note in notes if note["what"] == what]
