"""A contender in a process of its own, which runs one round at a time on command.

Both sides are here. The process reads a task a line from its standard input and answers a line
each, all in JSON; the first line it writes, once its weights are loaded, is its library versions.
It ends when its input does.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.contenders import ENTRIES, Contender, Entry
from benchmarks.meters import metered
from benchmarks.toys import TOYS, Round

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Clocked:
    """What a round took in all: user and system seconds of the process, and seconds on the wall."""

    user: float
    system: float
    wall: float


@dataclass(frozen=True)
class Checked:
    """What a round was made of, by part of the model; its output is in the file asked for."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)


class Worker:
    """The near side: starts the process, asks it, ends it."""

    def __init__(self, entry: Entry, toy: str, folder: Path) -> None:
        self.entry = entry
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", entry.name, toy, str(folder)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | ENVIRONMENT,
        )  # fmt: skip
        self.versions: dict[str, str] | None = None

    def loaded(self) -> dict[str, str]:
        """Waits for the weights; the versions of what is timed."""
        if self.versions is None:
            self.versions = self._answer()
        return self.versions

    def time(self, round_: Round) -> Clocked:
        return Clocked(**self._ask({"round": asdict(round_)}))

    def check(self, round_: Round, file: Path) -> Checked:
        """The round unclocked, its `latents` and `pixels` written to `file`."""
        return Checked(**self._ask({"round": asdict(round_), "file": str(file)}))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        self.loaded()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.entry.name} ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def clocked(contender: Contender, round_: Round) -> Clocked:
    requests = round_.requests()
    gc.collect()
    before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    contender.generate(requests)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return Clocked(
        user=after.ru_utime - before.ru_utime,
        system=after.ru_stime - before.ru_stime,
        wall=time.perf_counter() - wall,
    )


def checked(contender: Contender, round_: Round, file: Path) -> Checked:
    with metered(contender.parts) as counts:
        latents, pixels = contender.generate(round_.requests())
    save_file({"latents": latents.contiguous(), "pixels": pixels.contiguous()}, file)
    return Checked(counts)


def serve(entry: Entry, toy: str, folder: Path) -> None:
    """The far side."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not for the reader of answers
    torch.set_num_threads(1)
    contender = entry.load(folder, TOYS[toy])
    answers.write(json.dumps(dict(contender.versions)) + "\n")
    for line in sys.stdin:
        task = json.loads(line)
        round_ = Round(**task["round"])
        if "file" in task:
            answer: Clocked | Checked = checked(contender, round_, Path(task["file"]))
        else:
            answer = clocked(contender, round_)
        answers.write(json.dumps(asdict(answer)) + "\n")


if __name__ == "__main__":
    serve(ENTRIES[sys.argv[1]], sys.argv[2], Path(sys.argv[3]))
