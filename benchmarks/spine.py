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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from batch.output import DATA, Output
from batch.parts import PARTS, Parts
from batch.receipt import RECEIPTS, Receipt
from batch.run import checked_plan, left_to_do
from batch.storage import Storage
from benchmarks import machine
from benchmarks.sleeping import Load, at, job_of, timed_run, write_rows
from benchmarks.toys import TOYS
from tests.parity.tiny import write_folder

RESULTS = Path(__file__).parent / "results"
MILLION = 1_000_000


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
    """Share of the wall in which cards worked, at 20 ms of card and 10 ms of encoder a row; of a
    run of twenty seconds and of one of a minute."""
    workers = 2
    out: dict[str, Any] = {"goal": "≥ 0.93 of the wall"}
    for rows in (2000, 6000):
        job = job_of(folder / str(rows), rows, workers=workers)
        told = timed_run(job, Load(0.02, 0.01, 65536))
        ideal = rows * 0.02 / workers
        first = min(at(told["notes"], "first row"))
        out[f"{rows} rows"] = {
            "wall s": round(told["wall"], 2),
            "of the wall": round(ideal / told["wall"], 3),
            "of the wall after the first row": round(ideal / (told["ended"] - first), 3),
            "before the first row s": round(first - told["began"], 2),
        }
    return out


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
    The driver is a process of its own, which finds the manifest there."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "manifest.parquet", MILLION, keys=True)
    words = [sys.executable, "-m", "benchmarks.driver", "million", str(folder)]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"goal": "< 60 s and < 1 GB"} | told


def drain(folder: Path) -> dict[str, Any]:
    """Seconds from SIGTERM to the end of a driver with two workers and a Ray of its own, at
    micro-batches of 2 s; and how many rows of those that were begun are kept."""
    seconds, kept, codes = [], [], []
    for turn in range(3):
        place = folder / str(turn)
        place.mkdir(parents=True)
        write_rows(place / "manifest.parquet", 512, keys=True)
        words = [sys.executable, "-m", "benchmarks.driver", "stopped", str(place)]
        with (place / "log").open("w") as log:
            driver = subprocess.Popen(words, stdout=log, stderr=log)
            notes = Path(f"{place}/out.notes")
            while not notes.is_file():
                time.sleep(0.05)
            time.sleep(5 + turn * 0.6)
            began = time.monotonic()
            driver.terminate()
            codes.append(driver.wait())
        seconds.append(round(time.monotonic() - began, 2))
        storage = Storage(str(place / "out"))
        kept.append(sum(len(Parts(storage, shard)) for shard in storage.folders(PARTS)))
    return {
        "goal": "≤ one micro-batch (2 s) + 2 s, status 75",
        "seconds": seconds,
        "statuses": codes,
        "rows kept": kept,
    }


def tick(folder: Path) -> dict[str, Any]:
    """A scheduled `jobs.generate` that finds nothing new: seconds of a process of its own."""
    write_folder_job(folder)
    words = [sys.executable, "-m", "jobs.generate", "--config", str(folder / "job.yaml")]
    subprocess.run(words, check=True, capture_output=True)
    walls, cpu = [], []
    for _ in range(3):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(words, check=True, capture_output=True)
        walls.append(round(time.monotonic() - began, 2))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        cpu.append(round(used, 2))
    return {"goal": "≤ 3 s", "wall s": walls, "CPU s": cpu}


def write_folder_job(folder: Path) -> None:
    """A job of the shipped model over 1,000 rows that are all wrong: soon finished."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"prompt": ["a fox"] * 1000, "height": [17] * 1000}
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    places = {"manifest": f"{folder}/manifest.parquet", "output": f"{folder}/out"}
    (folder / "job.yaml").write_text(json.dumps(places))


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
    "drain": drain,
    "tick": tick,
    "memory": memory,
    "balance": balance,
    "weights": weights,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--save", action="store_true", help="write results/spine-<date>.json")
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, configure_logging=False)
    told: dict[str, Any] = {"machine": machine.described(), "versions": machine.versions()}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix=f"spine-{name}-") as folder:
            told[name] = FIGURES[name](Path(folder))
        print(json.dumps({name: told[name]}, indent=2, ensure_ascii=False), flush=True)
    if arguments.save:
        day = time.strftime("%Y-%m-%d")
        path = RESULTS / f"spine-{day}.json"
        if path.is_file():
            told = json.loads(path.read_text()) | told
        path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
