"""What the way of a row costs besides its engine: start, idle cards, per row, memory, resume.

    python -m benchmarks.spine [--only NAME ...] [--save]

The engine sleeps; pictures are bytes of a given size. Each figure stands beside the goal for it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from batch.actor import ShardWorker
from batch.media import to_bytes
from batch.output import DATA, Output
from batch.receipt import RECEIPTS, Receipt
from batch.run import checked_plan, left_to_do, run
from batch.stages.generate import Asked, GenerateStage
from benchmarks import machine
from benchmarks.toys import TOYS
from flux_engine.request import ONLOOKER, Generation, GenerationRequest, Outcome, Watch
from schemas.jobs import GenerateJob
from schemas.records import ImageRecord, Record
from tests.parity.tiny import write_folder

MICRO_BATCH = 4
MILLION = 1_000_000
RESULTS = Path(__file__).parent / "results"
DOT = to_bytes(torch.zeros(3, 1, 1), "png", 0)  # the page wants to open a picture


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

    def _record(self, asked: Asked, made: Generation) -> Record:
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

    def of(self, job: GenerateJob, roots: tuple[str, ...]) -> "Factory":
        return Factory(self.load, job, roots)

    def __call__(self, crumb: Path) -> ShardWorker:
        assert self.job is not None
        return ShardWorker(self.job, SleeperStage(self.job, self.roots, self.load), crumb)


def rss() -> int:
    """Bytes of this process that are its own."""
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return sum(int(fields[fields.index(name) + 1]) * 1024 for name in PRIVATE)


PRIVATE = ("Private_Clean:", "Private_Dirty:")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def job_of(folder: Path, rows: int, *, keys: bool = True, **values: Any) -> GenerateJob:
    """A resolved job over a new manifest of one file; with no rows, over the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if rows:
        write_rows(folder / "manifest.parquet", rows, keys=keys)
    sampling = {
        "height": 16,
        "width": 16,
        "embedded_guidance": 3.5,
        "num_inference_steps": 1,
        "t5_sequence_length": 16,
    }
    told = {"manifest": str(folder / "manifest.parquet"), "output": str(folder / "out")}
    return GenerateJob.parse(told | {"workers": 1, "sampling": sampling} | values)


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


def first_row(folder: Path) -> dict[str, Any]:
    """Seconds from the call of `run` to the first row. A worker imports torch and the engine on the
    way; what that takes in a process of its own is told apart."""
    told = timed_run(job_of(folder, 64), Load())
    words = "import time; t = time.time(); import batch.stages.generate; print(time.time() - t)"
    done = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    total = min(at(told["notes"], "first row")) - told["began"]
    return {
        "goal": "≤ 1.5 s besides imports",
        "plan s": round(told["planned"], 3),
        "to the first row s": round(total, 2),
        "imports s": round(float(done.stdout), 2),
        "besides imports s": round(total - float(done.stdout), 2),
    }


def busy(folder: Path) -> dict[str, Any]:
    """Share of the wall in which cards worked, at 20 ms of card and 10 ms of encoder a row."""
    rows, workers = 2000, 2
    job = job_of(folder, rows, workers=workers)
    told = timed_run(job, Load(0.02, 0.01, 65536))
    ideal = rows * 0.02 / workers
    first = min(at(told["notes"], "first row"))
    return {
        "goal": "≥ 0.93 of the wall",
        "rows": rows,
        "wall s": round(told["wall"], 2),
        "of the wall": round(ideal / told["wall"], 3),
        "of the wall after the first row": round(ideal / (told["ended"] - first), 3),
        "before the first row s": round(first - told["began"], 2),
    }


def per_row(folder: Path) -> dict[str, Any]:
    """CPU seconds a row all in, driver and worker, at 64 KB a picture and no compute: the slope
    between two sizes. The wall beside it is that of a worker that has nothing to wait for."""
    small, large = 2000, 12_000
    cpu, walls = {}, {}
    for rows in (small, large):
        before = time.process_time()
        told = timed_run(job_of(folder / str(rows), rows), Load(size=65536))
        worker = max(note["cpu"] for note in told["notes"] if note["what"] == "rows")
        cpu[rows] = time.process_time() - before + worker
        walls[rows] = told["ended"] - min(at(told["notes"], "first row"))
    return {
        "goal": "≤ 0.5 ms",
        "CPU ms a row": round(1000 * (cpu[large] - cpu[small]) / (large - small), 3),
        "wall ms a row": round(1000 * (walls[large] - walls[small]) / (large - small), 3),
    }


def resume(folder: Path) -> dict[str, Any]:
    """Seconds to decide what is left of ten million rows, all but one shard finished."""
    out: dict[str, Any] = {"goal": "≤ 1 s at 1,000 rows a shard"}
    for per_shard in (1000, 64):
        job = job_of(folder / str(per_shard), 10_000_000, keys=False, rows_per_shard=per_shard)
        began = time.monotonic()
        _, shards = checked_plan(job)
        planned = time.monotonic() - began
        output = Output(job.output, job.format)
        for name in (DATA, RECEIPTS):
            Path(output.storage.path(name)).mkdir(parents=True)
        for shard in shards[1:]:
            receipt = Receipt(
                shard=shard.name, done=shard.rows, rejected=0, data_sum="0" * 64, data_bytes=1,
                rejects_sum=None,
            )  # fmt: skip
            for name in (output.data(shard.name), f"{RECEIPTS}/{receipt.name}"):
                os.close(os.open(output.storage.path(name), os.O_CREAT))
        began = time.monotonic()
        report, todo = left_to_do(job, output, shards, retry_rejected=False)
        decided = time.monotonic() - began
        assert len(todo) == 1
        assert report.done == 10_000_000 - per_shard
        out |= {
            f"plan, {len(shards)} shards, s": round(planned, 2),
            f"decide, {len(shards)} shards, s": round(decided, 2),
        }
    return out


def large_manifest(folder: Path) -> dict[str, Any]:
    """A manifest of a million rows with keys: seconds until its first row, and the driver's peak.
    In a process of its own, which finds the manifest there: the peak is the driver's alone."""
    job_of(folder, MILLION)
    words = [sys.executable, "-m", "benchmarks.spine", "--million", str(folder)]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def million(folder: Path) -> dict[str, Any]:
    """What `large_manifest` measures, in this process. Of its peak, what stands there when Ray is
    connected is told apart: this benchmark imports torch, and a driver does not."""
    job = job_of(folder, 0)
    before = peak()
    ray.init(configure_logging=False)
    connected = peak()
    begun = time.time()
    first: list[float] = []

    def stop() -> bool:
        notes = Notes(job)
        if not first and notes.path.is_file():
            first.extend(at(notes.read(), "first row"))
        return bool(first)

    run(job, *checked_plan(job), lambda: stop, Factory(Load(0.001)).of)
    return {
        "goal": "< 60 s and < 1 GB",
        "to the first row s": round(first[0] - begun, 1),
        "driver's peak MB": round(peak() / 1e6),
        "of that before planning MB": round(connected / 1e6),
        "before Ray MB": round(before / 1e6),
    }


def memory(folder: Path) -> dict[str, Any]:
    """Private memory of a worker that makes pictures of 4 MB, and what lies in the object store."""
    store = "object_store_memory"
    job = job_of(folder, 600)
    told = timed_run(job, Load(0.002, 0.001, 4_000_000, weighed=True))
    rows = [note for note in told["notes"] if note["what"] == "rows"]
    total, free = ray.cluster_resources()[store], ray.available_resources()[store]
    return {
        "goal": "model + bounded queues; nothing in the object store",
        "written GB": round(600 * 4e6 / 1e9, 1),
        "peak of a worker MB": round(max(note["peak"] for note in rows) / 1e6),
        "private after its first shard MB": round(rows[0]["rss"] / 1e6),
        "private after its last shard MB": round(rows[-1]["rss"] / 1e6),
        "in the object store MB": round((total - free) / 1e6, 1),
    }


def balance(folder: Path) -> dict[str, Any]:
    """Rows of each of four workers, of a manifest of one file with fewer shards than workers."""
    out: dict[str, Any] = {"goal": "max/mean ≤ 1.1"}
    for rows in (192, 640):
        job = job_of(folder / str(rows), rows, workers=4)
        told = timed_run(job, Load(0.1))
        made: Counter[int] = Counter()
        for note in told["notes"]:
            if note["what"] == "rows":
                made[note["pid"]] += note["count"]
        mean = rows / 4
        out[f"{rows} rows, {-(-rows // 64)} shards"] = {
            "rows of each": sorted(made.values()),
            "max/mean": round(max(made.values()) / mean, 3),
        }
    return out


SHARER = """
import sys
from pathlib import Path
from benchmarks.toys import Round
from flux_engine import load_engine
import torch

def fields():
    words = Path("/proc/self/smaps_rollup").read_text().split()
    names = ("Pss:", "Pss_File:", "Pss_Anon:")
    return [int(words[words.index(name) + 1]) // 1024 for name in names]

print(*fields(), flush=True)
engine = load_engine(sys.argv[1], device="cpu", torch_dtype=torch.float32)
engine.generate(Round(number=0, side=128, schedule="flux").requests()[:1])
print("loaded", flush=True)
sys.stdin.readline()
print(*fields(), flush=True)
sys.stdin.readline()
"""


def weights(folder: Path) -> dict[str, Any]:
    """What three processes that hold one model take together; each has made a picture with it."""
    write_folder(folder / "model", TOYS["small"])
    size = sum(f.stat().st_size for f in (folder / "model").rglob("*.safetensors"))
    words = [sys.executable, "-c", SHARER, str(folder / "model")]
    pipe = subprocess.PIPE
    sharers = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]

    def line(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    def go_on(process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    before = [[int(word) for word in line(sharer).split()] for sharer in sharers]
    for sharer in sharers:
        assert line(sharer) == "loaded\n"
    told = []
    for sharer in sharers:
        go_on(sharer)
        told.append([int(word) for word in line(sharer).split()])
    for sharer in sharers:
        go_on(sharer)
        sharer.wait()
    return {
        "goal": "one copy of the weights on a node",
        "weights MB": round(size / 2**20),
        "file pages of all three together, grown by MB": sum(
            now[1] - then[1] for now, then in zip(told, before, strict=True)
        ),
        "own pages of each, grown by MB": [
            now[2] - then[2] for now, then in zip(told, before, strict=True)
        ],
    }


FIGURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "first_row": first_row,
    "busy": busy,
    "per_row": per_row,
    "resume": resume,
    "large_manifest": large_manifest,
    "memory": memory,
    "balance": balance,
    "weights": weights,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--save", action="store_true", help="write results/spine-<date>.json")
    parser.add_argument("--million", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.million:
        print(json.dumps(million(arguments.million)))
        return
    ray.init(address="local", num_cpus=4, include_dashboard=False, configure_logging=False)
    told: dict[str, Any] = {"machine": machine.described(), "versions": machine.versions()}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix=f"spine-{name}-") as folder:
            told[name] = FIGURES[name](Path(folder))
        print(json.dumps({name: told[name]}, indent=2, ensure_ascii=False), flush=True)
    if arguments.save:
        day = time.strftime("%Y-%m-%d")
        path = RESULTS / f"spine-{day}.json"
        path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
