import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from batch import growth
from batch.errors import JobError
from batch.growth import awaited, growing, renewed
from tests.batch.doubles import job


class Wishes:
    """What stands for Ray: wishes by number, those that wait, and how many there have been."""

    def __init__(self) -> None:
        self.made, self.left = 0, set[int]()

    def make(self, count: int) -> list[int]:
        new = list(range(self.made, self.made + count))
        self.made += count
        self.left |= {*new}
        return new

    def waiting(self, wishes: Sequence[int]) -> list[int]:
        return [wish for wish in wishes if wish in self.left]

    def withdraw(self, wishes: Sequence[int]) -> None:
        self.left -= {*wishes}


@pytest.fixture
def wishes(monkeypatch: pytest.MonkeyPatch) -> Wishes:
    made = Wishes()
    monkeypatch.setattr(growth, "wish_for_gpus", made.make)
    monkeypatch.setattr(growth, "waiting", made.waiting)
    monkeypatch.setattr(growth, "withdraw", made.withdraw)
    monkeypatch.setattr(growth, "LOOK_S", 0.01)
    return made


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def there(monkeypatch: pytest.MonkeyPatch, *gpus: int) -> None:
    """So many GPUs at each look, the last number for ever."""
    looks = iter(gpus)
    monkeypatch.setattr(
        growth, "resources", lambda: {"CPU": 0.0, "GPU": float(next(looks, gpus[-1]))}
    )


def wanting(tmp_path: Path, workers: Any, device: str = "cuda", **values: Any) -> Any:
    return job(tmp_path, tmp_path, workers=workers, engine={"device": device}, **values)


@pytest.mark.parametrize(
    ("workers", "pieces", "count"), [([1, 8], 100, 8), ([1, 8], 3, 3), (4, 100, 4)]
)
def test_a_cluster_is_asked_for_as_many_as_the_job_names_and_can_keep_busy(
    workers: Any,
    pieces: int,
    count: int,
    tmp_path: Path,
    wishes: Wishes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there(monkeypatch, 2)
    with growing(wanting(tmp_path, workers), pieces):
        until(lambda: len(wishes.left) == count - 2)
    assert not wishes.left


@pytest.mark.parametrize(
    ("workers", "device", "gpus"),
    [("auto", "cuda", 1), ([1, 8], "cpu", 0), ([1, 8], "auto", 0), ([1, 2], "cuda", 2)],
)
def test_what_is_there_or_not_named_is_not_asked_for(
    workers: Any,
    device: str,
    gpus: int,
    tmp_path: Path,
    wishes: Wishes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there(monkeypatch, gpus)
    with growing(wanting(tmp_path, workers, device), 100):
        pass
    assert wishes.made == 0


def test_a_wish_that_was_served_is_had_again_as_long_as_gpus_are_missing(
    wishes: Wishes,
) -> None:
    first = renewed([], 3)
    wishes.left -= {first[0], first[1]}  # both by one node
    second = renewed(first, 2)
    assert second == [first[2], 3]
    assert renewed(second, 1) == [first[2]]
    assert wishes.left == {first[2]}
    assert renewed([first[2]], 0) == []
    assert not wishes.left


def test_a_job_waits_for_its_first_workers_as_long_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "LOOK_S", 0.01)
    there(monkeypatch, 0, 0, 1, 2)
    share = awaited(wanting(tmp_path, [2, 4], worker_wait=60), lambda: False)
    assert share is not None
    assert (share.low, share.high) == (2, 4)
    there(monkeypatch, 0)
    assert awaited(wanting(tmp_path, [2, 4], worker_wait=60), lambda: True) is None
    with pytest.raises(JobError, match="the cluster has no GPU"):
        awaited(wanting(tmp_path, [2, 4], worker_wait=0.05), lambda: False)
    with pytest.raises(JobError, match="the cluster has no GPU"):
        awaited(wanting(tmp_path, [2, 4]), lambda: False)


@pytest.mark.ray
def test_a_cluster_of_none_grows_to_what_a_job_names() -> None:
    """Ray's own autoscaler, whose nodes are processes here."""
    with tempfile.TemporaryDirectory(prefix="fm") as folder:
        program = subprocess.run(
            [sys.executable, "-m", "tests.batch.growing", folder],
            env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert program.returncode == 0, program.stderr[-4000:]
    told = json.loads(program.stdout.splitlines()[-1])
    assert told == {"before": 0, "after": 2.0, "done": 64, "complete": True}
