"""Which rows a run has learned from, and how often."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.storage import Storage
from batch.training import drawn
from batch.training.drawn import FILE, grouped, times_drawn
from batch.training.loader import Maker
from batch.training.metrics import read_metrics
from batch.training.stream import Draft
from flux_engine.weights.reader import read_metadata
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson
from tests.batch.training.tables import picture, write_table
from tests.batch.training.test_worker import Falls, poisoned

Drawn = Counter[tuple[str, str | None]]


def written(folder: Path) -> Drawn:
    """Times by dataset and key."""
    rows = pq.read_table(folder / FILE).to_pylist()
    assert all(row["drawn"] > 0 for row in rows)
    return Counter({(row["dataset"], row["key"]): row["drawn"] for row in rows})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What the loader gives, by dataset's place and key."""
    seen: Drawn = Counter()
    real = Maker.__call__

    def noted(maker: Maker, draft: Draft) -> Any:
        examples = real(maker, draft)
        for example in examples:
            key = example.name.partition("(key ")[2].rstrip(")")
            seen[str(draft.dataset), key] += 1
        return examples

    monkeypatch.setattr(Maker, "__call__", noted)
    return seen


def test_rows_are_counted_as_the_run_has_seen_them(
    tmp_path: Path, targets: Targets, made: Drawn
) -> None:
    table = write_table(tmp_path / "table")
    paths = [str(targets("cache")), str(table)]
    job = lesson(
        tmp_path / "out", table, max_steps=7,
        datasets=[{"path": paths[0], "weight": 3}, {"path": paths[1], "weight": 1}],
    )  # fmt: skip
    learned(job)
    wanted = {(paths[int(place)], key): times for (place, key), times in made.items()}
    assert written(tmp_path / "out") == wanted
    rows = pq.read_table(tmp_path / "out" / FILE).to_pylist()
    assert {row["file"] for row in rows if row["dataset"] == paths[1]} == {"rows.parquet"}
    (first,) = (row for row in rows if (row["dataset"], row["key"]) == (paths[0], "row 6"))
    there = pq.read_table(f"{paths[0]}/{first['file']}", columns=["key"]).column(0)
    assert there[first["row"]].as_py() == "row 6"
    lineage = (tmp_path / "out" / "lineage.json").read_bytes()
    told = json.loads(lineage)["drawn"]
    assert told["digest"] == hashlib.sha256((tmp_path / "out" / FILE).read_bytes()).hexdigest()
    assert (told["rows"], told["samples"]) == (len(rows), 7 * 2 * 2)
    words = read_metadata(tmp_path / "out" / "lora.safetensors")
    assert words["fluxmill.lineage"] == hashlib.sha256(lineage).hexdigest()


def test_samples_of_steps_that_were_left_out_are_not_counted(
    tmp_path: Path, targets: Targets
) -> None:
    job = lesson(tmp_path, targets("cache"), nan={"skip": 100})
    worker = poisoned(job)
    worker.run()
    lines = read_metrics(Storage(job.output_path))
    left = [line["step"] - 1 for line in lines if "broken" in line]
    assert 0 < len(left) < len(lines)
    seen = written(tmp_path)
    assert (str(targets("cache")), "row 2") not in seen
    assert seen.total() == (len(lines) - len(left)) * 2 * 2


def test_what_stood_in_for_a_row_is_counted_in_its_place_also_after_a_fall(
    tmp_path: Path, made: Drawn
) -> None:
    whole = [picture(64, 64, i) for i in range(4)]
    cut = {"bytes": whole[1]["bytes"][:-60], "path": None}
    sizes = {"image_width": [64] * 4, "image_height": [64] * 4}
    table = write_table(tmp_path / "rows", image=[whole[0], cut, cut, whole[3]], **sizes)
    learned(lesson(tmp_path / "out", table))
    wanted = {(str(table), key): times for (_, key), times in made.items()}
    assert {key for _, key in wanted} == {"k0", "k3"}
    assert written(tmp_path / "out") == wanted
    job = lesson(tmp_path / "fell", table)
    with pytest.raises(KeyboardInterrupt):
        learned(job, Falls(6))  # the last checkpoint is of step 4
    learned(job)
    assert written(tmp_path / "fell") == wanted


def test_rows_without_keys_have_their_numbers(tmp_path: Path) -> None:
    table = write_table(tmp_path / "rows")
    file = table / "rows.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["key"]), file)
    worker, _ = learned(lesson(tmp_path / "out", table, max_steps=1))
    (times,) = times_drawn(worker.curriculum, ())
    rows = pq.read_table(tmp_path / "out" / FILE).to_pylist()
    assert {row["row"]: row["drawn"] for row in rows} == dict(enumerate(times.tolist()))
    assert {row["key"] for row in rows} == {None}


def test_small_tables_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "GROUP", 5)
    tables = [pa.table({"a": np.arange(3)}) for _ in range(5)]
    assert [len(table) for table in grouped(tables)] == [6, 6, 3]
