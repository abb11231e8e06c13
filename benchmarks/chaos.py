"""Kills workers and drivers, and stops drivers, while rows are made; then counts what it did.

    python -m benchmarks.chaos [--rows 8000] [--worker-kills 40] [--driver-kills 4] [--stops 4]

The engine sleeps 20 ms a row, in micro-batches of 4, and writes down each row that it makes. A
reader opens files under data/ all the while. Prints lost, doubled, redone and unreadable, and
whether the bytes are those of an undisturbed run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batch.actor import ShardWorker
from batch.run import checked_plan, run
from batch.stages.generate import GenerateStage
from flux_engine.errors import NumbersBroke
from flux_engine.request import ONLOOKER, Generation, GenerationRequest, Outcome, Watch
from jobs import cli
from schemas.jobs import GenerateJob, Job

ROW_S = 0.02
MICRO_BATCH = 4
WORKERS = 2


class Sleeper:
    """Colours by seed after a while, and a line for each row in a log that outlives it."""

    def __init__(self, log: Path) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def each(
        self, requests: Sequence[GenerationRequest], *, watch: Watch = ONLOOKER
    ) -> Iterator[tuple[int, Outcome]]:
        for first in range(0, len(requests), MICRO_BATCH):
            if watch.leaving():
                return
            batch = range(first, min(first + MICRO_BATCH, len(requests)))
            watch.at("denoise", batch)
            time.sleep(ROW_S * len(batch))
            os.write(self.log, b"".join(f"{requests[i].prompt}\n".encode() for i in batch))
            yield from ((i, made(requests[i])) for i in batch)


def made(request: GenerationRequest) -> Outcome:
    if is_bad(request.prompt):
        return NumbersBroke("the pixels came out as NaN or infinity")
    noise = torch.Generator().manual_seed(request.seed)
    return Generation(
        pixels=torch.rand(3, 16, 16, generator=noise) * 2 - 1,
        latents=torch.zeros(1),
        sigma_shift=1.0,
        micro_batch=MICRO_BATCH,
        tokens_dropped=0,
    )


def is_bad(prompt: str) -> bool:
    """One row of fifty is rejected."""
    return int(prompt.split()[1]) % 50 == 7


class SleeperStage(GenerateStage):
    def setup(self) -> None:
        self.engine = Sleeper(Path(self.job.output).with_suffix(".log"))
        self.fingerprint = {"weights": {"sleeper": "1"}}


class SleeperFactory:
    def __init__(self, job: Job, roots: tuple[str, ...]) -> None:
        assert isinstance(job, GenerateJob)
        self.job, self.roots = job, roots

    def __call__(self, crumb: Path) -> ShardWorker:
        return ShardWorker(self.job, SleeperStage(self.job, self.roots), crumb)


def job_of(folder: Path, name: str) -> GenerateJob:
    sampling = {
        "height": 16,
        "width": 16,
        "embedded_guidance": 3.5,
        "num_inference_steps": 1,
        "t5_sequence_length": 16,
    }
    return GenerateJob.parse(
        {
            "manifest": str(folder / "manifest.parquet"),
            "output": str(folder / name),
            "workers": WORKERS,
            "sampling": sampling,
        }
    )


def drive(job: GenerateJob) -> int:
    """One run of the job; its exit status."""
    cli.start_logging()
    stop = cli.StopSignal()
    try:
        _, complete = run(job, *checked_plan(job), lambda: cli.start_ray(stop), SleeperFactory)
    except cli.Stopped:
        return cli.STOPPED
    return cli.COMPLETE if complete else cli.STOPPED


def workers_of(driver: int) -> list[int]:
    """Ids of the worker processes of the Ray that this process has started, and of no other."""
    parents: dict[int, int] = {}
    workers = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                words = (entry / "cmdline").read_bytes()
            except OSError:  # gone in the meantime
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            if words.startswith(b"ray::WorkerProcess"):
                workers.append(int(entry.name))
    return [worker for worker in workers if parents.get(parents.get(worker, 0)) == driver]


class Reader(threading.Thread):
    """Opens every file that is to be seen under data/, as soon as it is there and again now and
    then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.known: set[Path] = set()
        self.opened, self.unreadable = 0, 0

    def run(self) -> None:
        dice = random.Random(0)
        while not self.over.wait(0.05):
            there = set(self.folder.glob("*.parquet"))
            again = dice.sample(sorted(self.known), min(5, len(self.known)))
            for file in [*(there - self.known), *again]:
                try:
                    pq.read_table(file)
                    self.opened += 1
                except pa.ArrowInvalid:
                    self.unreadable += 1
            self.known |= there


def disturbed(folder: Path, name: str, arguments: argparse.Namespace) -> list[int]:
    """Run until the dataset is complete, whatever happens on the way; the exit statuses."""
    dice = random.Random(arguments.seed)
    deeds = (
        ["worker"] * arguments.worker_kills
        + ["driver"] * arguments.driver_kills
        + ["stop"] * arguments.stops
    )
    dice.shuffle(deeds)
    ended: list[int] = []
    words = [sys.executable, "-m", "benchmarks.chaos", "--drive", str(folder), name]
    while not ended or ended[-1] != 0:
        with (folder / "runs.log").open("a") as log:
            driver = subprocess.Popen(words, stderr=log, stdout=log)
        while driver.poll() is None:
            time.sleep(dice.uniform(0.2, arguments.pause))
            workers = workers_of(driver.pid)
            if not deeds or not workers or driver.poll() is not None:
                continue
            match deeds.pop():
                case "worker":
                    os.kill(dice.choice(workers), signal.SIGKILL)
                case "driver":
                    driver.kill()
                case "stop":
                    driver.terminate()
        ended.append(driver.wait())
        if len(ended) > 100:
            raise SystemExit("it does not end")
    if deeds:
        print(f"{len(deeds)} deeds were left: the run was over before", file=sys.stderr)
    return ended


def keys_of(files: Iterable[Path]) -> list[str]:
    return [key for f in files for key in pq.read_table(f, columns=["key"])["key"].to_pylist()]


def bytes_of(output: Path) -> dict[str, bytes]:
    return {
        f.name: f.read_bytes() for sub in ("data", "rejected") for f in (output / sub).glob("*")
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--worker-kills", type=int, default=40)
    parser.add_argument("--driver-kills", type=int, default=4)
    parser.add_argument("--stops", type=int, default=4)
    parser.add_argument("--pause", type=float, default=4.0, help="longest time between two deeds")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="leave the outputs where they are")
    parser.add_argument("--drive", nargs=2, metavar=("FOLDER", "NAME"))
    arguments = parser.parse_args()
    if arguments.drive:
        sys.exit(drive(job_of(Path(arguments.drive[0]), arguments.drive[1])))

    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    prompts = [f"row {i}" for i in range(arguments.rows)]
    pq.write_table(pa.table({"prompt": prompts, "key": prompts}), folder / "manifest.parquet")
    words = [sys.executable, "-m", "benchmarks.chaos", "--drive", str(folder), "quiet"]
    with (folder / "quiet.txt").open("w") as log:
        subprocess.run(words, check=True, stderr=log, stdout=log)
    reader = Reader(folder / "out" / "data")
    reader.start()
    began = time.monotonic()
    ended = disturbed(folder, "out", arguments)
    seconds = time.monotonic() - began
    time.sleep(1)  # for it to see the last files
    reader.over.set()
    reader.join()

    files = sorted((folder / "out" / "data").glob("*.parquet"))
    good, bad = keys_of(files), keys_of((folder / "out" / "rejected").glob("*.parquet"))
    keys = Counter([*good, *bad])
    asked = Counter((folder / "out.log").read_text().splitlines())
    redone = sum(asked.values()) - len(asked)
    told = {
        "rows": arguments.rows,
        "seconds": round(seconds, 1),
        "exits": dict(Counter(ended)),
        "lost": arguments.rows - len(keys),
        "doubled": sum(keys.values()) - len(keys),
        "rejected": len(bad),
        "wrongly_rejected": sum(not is_bad(key) for key in bad),
        "files": len(files),
        "files_never_opened": len(set(files) - reader.known),
        "redone": redone,
        "redone_share": round(redone / arguments.rows, 4),
        "files_opened": reader.opened,
        "unreadable": reader.unreadable,
        "same_bytes": bytes_of(folder / "out") == bytes_of(folder / "quiet"),
    }
    print(json.dumps(told, indent=2))
    if arguments.keep:
        print(folder, file=sys.stderr)
    else:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
