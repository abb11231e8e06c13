from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batch.actor import ShardWorker
from batch.errors import OutputError
from batch.run import checked_plan
from batch.shards import Shard
from tests.batch.doubles import PainterStage, column, data_bytes, job, write_manifest


def worker_and_shards(
    tmp_path: Path, prompts: list[str], **values: object
) -> tuple[ShardWorker, list[Shard]]:
    manifest = write_manifest(
        tmp_path / "m.parquet",
        {
            "prompt": prompts,
            "key": [f"k{i}" for i in range(len(prompts))],
            "licence": ["CC0"] * len(prompts),
        },
    )
    asked = job(tmp_path, manifest, passthrough=["licence"], **values)
    worker = ShardWorker(asked, PainterStage(asked, (str(tmp_path),)))
    worker.setup()
    return worker, checked_plan(asked)[1]


def test_a_shard_becomes_a_file_in_the_order_of_its_rows(tmp_path: Path) -> None:
    worker, shards = worker_and_shards(tmp_path, ["fox", "nan", "owl", "bee", "ant"])
    reports = [worker(shard) for shard in shards]
    assert [(r.done, r.rejected) for r in reports] == [(3, 1), (1, 0)]
    assert column(tmp_path / "out", "key") == ["k0", "k2", "k3", "k4"]
    assert column(tmp_path / "out", "licence") == ["CC0"] * 4
    assert column(tmp_path / "out", "key", "rejected") == ["k1"]


def test_a_finished_shard_is_counted_and_not_made_again(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan"])
    first = worker(shard)
    before = data_bytes(tmp_path / "out")
    again = worker(shard)
    assert (again.done, again.rejected, again.state) == (first.done, first.rejected, "there")
    assert data_bytes(tmp_path / "out") == before


def test_rejects_of_a_killed_attempt_do_not_outlive_it(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "owl"])
    worker.output.storage.create(worker.output.rejected(shard.name), b"from a killed attempt")
    worker(shard)
    assert not (tmp_path / "out" / worker.output.rejected(shard.name)).exists()


def test_a_shard_of_bad_rows_alone_is_finished_too(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["nan", "nan"])
    report = worker(shard)
    assert (report.done, report.rejected) == (0, 2)
    (file,) = (tmp_path / "out" / "data").iterdir()
    assert pq.read_metadata(file).num_rows == 0


def test_other_weights_are_refused_before_a_row_is_made(tmp_path: Path) -> None:
    worker, _ = worker_and_shards(tmp_path, ["fox"])

    class Other(PainterStage):
        weights = "2"

    with pytest.raises(OutputError, match="made by other weights"):
        ShardWorker(worker.job, Other(worker.job, ())).setup()


def test_a_tar_is_a_shard_as_well(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox"], format="webdataset")
    worker(shard)
    assert [f.suffix for f in (tmp_path / "out" / "data").iterdir()] == [".tar"]
