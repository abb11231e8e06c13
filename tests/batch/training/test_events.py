"""Curves for TensorBoard, read back with its own reader."""

import builtins
import logging
from pathlib import Path
from typing import Any

import pytest

from batch.storage import Storage
from batch.training.events import FOLDER, Events


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
