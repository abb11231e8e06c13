from pathlib import Path

import pytest

from batch.output import Output
from batch.receipt import RECEIPTS, Receipt, sum_of
from batch.run import left_to_do
from batch.storage import Attempt, Storage
from batch.verify import verify
from tests.batch.doubles import data_bytes
from tests.batch.test_actor import worker_and_shards


def test_a_shard_has_a_receipt_with_the_sums_of_its_files(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan", "owl"])
    worker(shard)
    storage = worker.output.storage
    name, copy = storage.names(RECEIPTS)
    assert copy == name.replace(".json", ".parquet")
    receipt = Receipt.from_json(storage.read(f"{RECEIPTS}/{name}"))
    assert (receipt.done, receipt.rejected) == (2, 1)
    assert worker.output.count(shard.name) == (2, 1)
    for file, total in (
        (worker.output.data(shard.name), receipt.data_sum),
        (worker.output.rejected(shard.name), receipt.rejects_sum),
    ):
        with storage.open(file) as opened:
            assert sum_of(opened) == total


def test_rejects_are_shown_when_the_data_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan"])
    order: list[str] = []
    replace, publish = Storage.replace, Storage.publish

    def replaced(self: Storage, name: str, data: bytes, *, durable: bool = True) -> None:
        order.append(name.split("/")[-2])
        replace(self, name, data, durable=durable)

    def published(self: Storage, attempt: Attempt, name: str) -> bool:
        order.append(name.split("/")[-2])
        return publish(self, attempt, name)

    monkeypatch.setattr(Storage, "replace", replaced)
    monkeypatch.setattr(Storage, "publish", published)
    worker(shard)
    assert order == ["receipts", "receipts", "data", "rejected"]


def test_who_is_second_leaves_the_rejects_of_the_first(tmp_path: Path) -> None:
    """Two runs make one shard; a row fails in one of them alone."""
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "owl"])
    late, _ = worker_and_shards(tmp_path, ["fox", "owl"])
    exists, storage = late.output.storage.exists, late.output.storage
    storage.exists = lambda name: name.startswith("_run") and exists(name)  # type: ignore[method-assign]
    worker(shard, {1: "WorkerDied: it was killed"})
    before = data_bytes(tmp_path / "out")
    assert len(before) == 2
    report = late(shard)
    assert (report.state, report.done, report.rejected) == ("there", 1, 1)
    assert data_bytes(tmp_path / "out") == before
    assert verify(str(tmp_path / "out")).faults == []


def test_rejects_that_a_killed_worker_did_not_show_are_shown_by_the_next_run(
    tmp_path: Path,
) -> None:
    worker, shards = worker_and_shards(tmp_path, ["fox", "nan"])
    worker(shards[0])
    (rejects,) = (tmp_path / "out" / "rejected").iterdir()
    kept = rejects.read_bytes()
    rejects.unlink()  # as if the worker had died behind the data
    report, todo = left_to_do(worker.job, worker.output, shards, retry_rejected=False)
    assert (report.done, report.rejected, todo) == (1, 1, [])
    assert rejects.read_bytes() == kept


def test_of_two_makers_that_differ_the_published_one_counts(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan"])
    worker(shard)
    output: Output = worker.output
    other = Receipt(
        shard=shard.name, done=2, rejected=0, data_sum="0" * 64, data_bytes=1, rejects_sum=None
    )
    output.storage.replace(f"{RECEIPTS}/{other.name}", other.as_json())
    assert output.count(shard.name) == (1, 1)
    output.storage.remove(output.rejected(shard.name))
    output.show_rejects([shard.name], output.receipts())
    assert len(output.rejects(shard.name)) == 1
