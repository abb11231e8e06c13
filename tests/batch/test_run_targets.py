"""Whole runs of distillation jobs on a local Ray."""

import json
from pathlib import Path

import pytest

from batch.run import checked_plan, run
from jobs.work import resolved
from schemas.jobs import DistillJob
from tests.batch.doubles import write_manifest
from tests.batch.test_run import start

ROWS = 24


def job(folder: Path, name: str, **values: object) -> DistillJob:
    prompts = [f"a {'small' if i % 2 else 'large'} red circle" for i in range(ROWS)]
    columns = {"prompt": prompts, "key": [f"k{i}" for i in range(ROWS)]}
    manifest = write_manifest(folder / "m.parquet", columns)
    told = {
        "manifest": str(manifest),
        "output": str(folder / name),
        "rows_per_shard": 4,
        "target": {"kind": "path"},
        "check_share": 0.2,
        "engine": {"torch_dtype": "float32", "micro_batch": 2, "device": "cpu"},
        "sampling": {"num_inference_steps": 4},
    }
    return resolved(DistillJob.parse(told | values))


def contents(output: Path) -> dict[str, bytes]:
    """All that must not depend on who made it."""
    files = [*(output / "data").iterdir(), *(output / "text").iterdir(), output / "manifest.json"]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_one_two_or_three_workers_make_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for workers in (1, 2, 3):
        asked = job(tmp_path, f"out{workers}", workers=workers)
        report, complete = run(asked, *checked_plan(asked), start)
        assert (report.done, report.rejected, complete) == (ROWS, 0, True)
        made.append(contents(tmp_path / f"out{workers}"))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 6 + 1 + 1


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_finished_dataset_is_left_alone(tmp_path: Path) -> None:
    asked = job(tmp_path, "out", workers=1)
    run(asked, *checked_plan(asked), start)
    before = contents(tmp_path / "out")
    cost = (tmp_path / "out" / "_run" / "cost.json").read_bytes()

    def never() -> None:
        raise AssertionError("Ray is not needed")

    report, complete = run(asked, *checked_plan(asked), never)  # type: ignore[arg-type]
    assert (report.skipped, complete) == (ROWS, True)
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "_run" / "cost.json").read_bytes() == cost


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_what_a_dataset_has_cost_stands_beside_what_was_predicted(tmp_path: Path) -> None:
    asked = job(tmp_path, "out", workers=1)
    run(asked, *checked_plan(asked), start)
    cost = json.loads((tmp_path / "out" / "_run" / "cost.json").read_bytes())
    assert cost["predicted"]["rows"] == ROWS
    data = sum(file.stat().st_size for file in (tmp_path / "out" / "data").iterdir())
    assert cost["used"]["data_bytes"] == data
    assert cost["predicted"]["data_bytes"] == pytest.approx(data, rel=0.5)  # small ones: words
    assert cost["used"]["text_bytes"] > 0
    reports = [*(tmp_path / "out" / "_run" / "reports").iterdir()]  # busy seconds are sampled
    busy = sum(json.loads(file.read_bytes())["busy_seconds"] for file in reports)
    assert (len(reports), cost["used"]["card_seconds"]) == (1, busy)
