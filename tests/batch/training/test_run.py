"""A training job from its datasets to its result, without Ray."""

from pathlib import Path

import pytest

from batch.errors import OutputError
from batch.training.look import checked
from batch.training.run import Stop, standing, train, workers_of
from schemas.training import TrainJob
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson


def never() -> Stop:
    raise AssertionError("Ray was started")


def go(job: TrainJob, stop: Stop = lambda: False) -> tuple[int, int, int]:
    report = train(job, checked(job), never, stop)
    return report.step, report.steps, report.resumed


def test_a_run_goes_on_and_a_finished_one_is_not_made_again(
    tmp_path: Path, targets: Targets
) -> None:
    job = lesson(tmp_path / "out", targets("cache"))
    assert standing(job, checked(job)).startswith("0 of 6 steps are done")
    answers = iter([False, False, True])
    assert go(job, lambda: next(answers)) == (3, 6, 0)
    assert standing(job, checked(job)).startswith("3 of 6 steps are done")
    assert go(job) == (6, 6, 3)
    page = (tmp_path / "out" / "training.html").stat().st_mtime_ns
    assert go(job) == (6, 6, 6)
    assert (tmp_path / "out" / "training.html").stat().st_mtime_ns == page


def test_another_recipe_or_other_rows_are_refused(tmp_path: Path, targets: Targets) -> None:
    go(lesson(tmp_path / "out", targets("cache")))
    other = lesson(tmp_path / "out", targets("cache"), learning_rate=5e-4)
    with pytest.raises(OutputError, match=r"learning_rate was 0\.001 and is 0\.0005"):
        go(other)
    with pytest.raises(OutputError, match=r"learning_rate"):
        standing(other, checked(other))
    with pytest.raises(OutputError, match=r"datasets\.0 was"):
        go(lesson(tmp_path / "out", targets("pair")))


def test_without_a_gpu_one_process_is_enough(
    tmp_path: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = lesson(tmp_path, targets("cache"), workers="auto")
    assert workers_of(job, never) == "local"
    with pytest.raises(AssertionError, match="Ray was started"):
        workers_of(lesson(tmp_path, targets("cache"), workers=2), never)
