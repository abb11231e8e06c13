"""The lines of a run."""

from pathlib import Path

from batch.storage import Storage
from batch.training.metrics import FILE, Metrics, read_metrics


def test_lines_of_steps_that_are_done_again_are_told_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = Metrics(storage, 0)
    for step in range(1, 6):
        first.add({"step": step, "loss": 1.0})
    first.write()
    again = Metrics(storage, 3)
    for step in range(4, 7):
        again.add({"step": step, "loss": 2.0})
    again.write()
    assert [line["step"] for line in read_metrics(storage)] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in read_metrics(storage)] == [1.0] * 3 + [2.0] * 3
    assert len((tmp_path / FILE).read_text().splitlines()) == 6


def test_an_output_without_lines_has_none(tmp_path: Path) -> None:
    assert read_metrics(Storage(str(tmp_path))) == []
