"""Curves for TensorBoard, read back with its own reader."""

import builtins
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch.storage import Storage
from batch.training.events import FOLDER, Events
from tests.batch.s3 import CREDENTIALS, serving
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with serving() as server:
        yield Storage(server.uri("out"))


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / FOLDER))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_events_of_steps_that_are_done_again_are_told_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = Events(storage, 0)
    for step in range(1, 6):
        first.add(step, {"loss": 1.0, "rate": 0.5})
    first.close()
    again = Events(storage, 3)
    for step in range(4, 7):
        again.add(step, {"loss": 2.0, "rate": 0.5})
    again.close()
    wanted = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert scalars(tmp_path, "loss") == wanted


def test_events_come_into_a_bucket_when_they_are_kept_and_in_the_end(
    bucket: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def there(name: str) -> list[tuple[int, float]]:
        folder = tmp_path / name
        (folder / FOLDER).mkdir(parents=True)
        for file in bucket.names(FOLDER):
            bucket.download(f"{FOLDER}/{file}", folder / FOLDER / file)
        return scalars(folder, "loss")

    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    first = Events(bucket, 0)
    for step in range(1, 4):
        first.add(step, {"loss": 1.0})
        if step == 2:
            first.keep()
    assert there("kept") == [(1, 1.0), (2, 1.0)]
    again = Events(bucket, 2)  # the first one fell
    for step in range(3, 6):
        again.add(step, {"loss": 2.0})
    again.close()
    assert there("closed") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    first.close()
    assert list(room.glob("fluxmill-events-*")) == []


def test_a_run_into_a_bucket_has_events_there(bucket: Storage, targets: Targets) -> None:
    learned(lesson(bucket.uri, targets("cache"), max_steps=2))
    assert len(bucket.names(FOLDER)) == 1


def test_without_the_package_a_line_says_how_to_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.INFO):
        events = Events(Storage(str(tmp_path)), 0)
    events.add(1, {"loss": 1.0})
    events.close()
    assert "fluxmill[tensorboard]" in caplog.text
    assert not (tmp_path / FOLDER).exists()
