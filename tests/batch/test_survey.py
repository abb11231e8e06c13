import json
from pathlib import Path

import pytest

from batch.errors import OutputError
from batch.survey import survey
from tests.batch.ingest.material import ingest, job, picture, table
from tests.batch.stages.test_distill import work
from tests.batch.test_actor import worker_and_shards


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_an_output_is_counted_from_its_own_files(tmp_path: Path, kind: str) -> None:
    prompts = ["fox", "nan", "owl", "raise", "bee"]
    worker, shards = worker_and_shards(tmp_path, prompts, format=kind)
    worker.output.claim(worker.job.recipe())
    for shard in shards:
        worker(shard)
    report = {"started": 10.0, "written": 14.0, "state": "finished", "done": 3, "rejected": 2,
              "skipped": 1, "busy_seconds": 2.0, "lost_workers": 0}  # fmt: skip
    worker.output.storage.replace("_run/reports/a.json", json.dumps(report).encode())
    told = survey(str(tmp_path / "out"), samples=2)
    assert (told.shards, told.done, told.rejected) == (2, 3, 2)
    assert told.sizes == {"16×16": 3}
    assert told.reasons == {"NumbersBroke": 1, "RowRaised": 1}
    assert told.examples["RowRaised"].startswith("m.parquet:3: ")
    assert [one["prompt"] for one in told.samples] == ["fox", "owl"]
    data = (tmp_path / "out" / "data").iterdir()
    assert told.data_bytes == sum(file.stat().st_size for file in data)
    (run,) = told.runs
    assert (run["rows"], run["rows_per_second"]) == (4, 1.0)
    assert json.loads(json.dumps(told.as_json()))["done"] == 3


def test_another_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no output of a job"):
        survey(str(tmp_path), samples=0)


def test_targets_are_counted_like_pictures(tmp_path: Path) -> None:
    manifest = {"key": ["a", "b"], "prompt": ["a red circle", "a blue square"]}
    work(tmp_path, manifest, target={"kind": "pair"})
    told = survey(str(tmp_path / "out"), samples=2)
    assert (told.done, told.sizes) == (2, {"64×64": 2})
    assert [one["prompt"] for one in told.samples] == manifest["prompt"]


def test_training_shards_are_counted_like_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(picture(40, 24))
    lines = [{"image": "0.png", "prompt": "a", "height": 5, "seed": "x"}]
    source = {
        "kind": "table",
        "dataset_base_path": str(tmp_path / "in"),
        "dataset_metadata_path": str(table(tmp_path / "t.json", lines)),
    }
    ingest(job(tmp_path / "out", source))
    told = survey(str(tmp_path / "out"), samples=1)
    assert (told.done, told.sizes) == (1, {"40×24": 1})
    assert told.samples[0]["prompt"] == "a"
    assert told.samples[0]["seed"] is None
