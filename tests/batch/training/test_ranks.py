"""Ranks on Ray Train: one that is lost is started again, a fault of the job ends it."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray.train
import torch

from batch.errors import RunFailed
from batch.storage import Storage
from batch.training import ranks as ranks_module
from batch.training.checkpoint import Checkpoints
from batch.training.metrics import read_metrics
from batch.training.ranks import RankSignals, is_asked_after, run_on_ray
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


class Unasked:
    """A flag whose answer never comes."""

    is_asked = SimpleNamespace(remote=lambda: None)


class Announced(RankSignals):
    """A rank that nobody asks to stop."""

    def __init__(self) -> None:
        super().__init__(Unasked())

    def stop(self) -> bool:
        return False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Answers to ranks' questions whether a machine goes away, in turn; the last one stays."""
    answers: list[object] = [None]
    monkeypatch.setattr(
        ray.train, "get_preemption_info", lambda: answers.pop(0) if answers[1:] else answers[0]
    )
    return answers


def test_that_a_machine_goes_away_is_heard_once(
    asked: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    asked[:] = [None, object()]
    signals = Announced()
    assert not signals.leaving(10, 0.1)
    assert not signals.leaving(11, 0.1)  # nobody asks then
    assert len(asked) == 1
    with caplog.at_level(logging.WARNING):
        assert signals.leaving(20, 0.1)
    assert "about to be taken away" in caplog.text
    assert not signals.leaving(30, 0.1)
    assert not signals.leaving(31, 5.0)


def test_a_checkpoint_is_written_when_a_machine_is_about_to_go(
    tmp_path: Path, targets: Targets, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "LEAVING_EVERY", 2)
    asked[:] = [None, object()]
    values = {"max_steps": 7, "checkpoint_steps": 100, "keep_checkpoints": 9}
    job = lesson(tmp_path, targets("cache"), **values)
    _, outcome = learned(job, Announced())
    assert outcome.complete
    assert Checkpoints(Storage(job.output_path)).steps() == [4, 7]


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
