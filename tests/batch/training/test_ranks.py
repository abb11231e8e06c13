"""Ranks on Ray Train: one that is lost is started again, a fault of the job ends it."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from batch.errors import RunFailed
from batch.storage import Storage
from batch.training.checkpoint import Checkpoints
from batch.training.metrics import read_metrics
from batch.training.ranks import is_asked_after, run_on_ray
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import checkpoint, learned, lesson, tensors

# Ray Train sets an option of Ray Data that Ray itself has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


def ranks() -> list[int]:
    """Processes that train."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "RayTrainWorker" in words:
            found.append(process.pid)
    return found


def test_long_steps_are_asked_after_each_and_short_ones_now_and_then() -> None:
    assert all(is_asked_after(step, 7.5) for step in range(1, 12))
    assert [step for step in range(1, 31) if is_asked_after(step, 0.2)] == [10, 20, 30]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_rank_that_is_killed_is_started_again_and_changes_no_bit(
    tmp_path: Path, targets: Targets
) -> None:
    values = {"max_steps": 40, "checkpoint_steps": 2, "max_failures": 1}
    whole = lesson(tmp_path / "whole", targets("cache"), **values)
    learned(whole)
    job = lesson(tmp_path / "killed", targets("cache"), workers=2, **values)
    killed: list[int] = []

    def kill() -> None:
        checkpoints = Checkpoints(Storage(job.output_path))
        while not checkpoints.steps():
            time.sleep(0.05)
        killed.extend(sorted(ranks())[-1:])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run_on_ray(job, 2, lambda: False)
    thread.join()
    assert killed
    one, other = tensors(checkpoint(whole)), tensors(checkpoint(job))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_as_many_as_there_is_room_for_learn_the_same_though_their_number_divides_nothing(
    tmp_path: Path, targets: Targets
) -> None:
    values = {"max_steps": 3, "gradient_accumulation_steps": 6}
    whole = lesson(tmp_path / "whole", targets("cache"), **values)
    learned(whole)
    job = lesson(tmp_path / "several", targets("cache"), workers=[1, 6], **values)
    run_on_ray(job, (1, 6), lambda: False)  # there are four CPUs
    one, other = tensors(checkpoint(whole)), tensors(checkpoint(job))
    assert all(torch.equal(one[name], other[name]) for name in one)
    alone, together = (
        [line["losses"] for line in read_metrics(Storage(one.output_path))] for one in (whole, job)
    )
    assert alone == together


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_fault_of_the_job_is_told_in_its_own_words(tmp_path: Path, targets: Targets) -> None:
    job = lesson(tmp_path, targets("cache"), workers=1, lora_target_modules=["nowhere"])
    with pytest.raises(RunFailed, match="SettingError: 'nowhere' matches no linear layer"):
        run_on_ray(job, 1, lambda: False)
