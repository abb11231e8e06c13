from pathlib import Path

import pytest

from batch.output import Output
from batch.receipt import RECEIPTS, Receipt, sum_of
from batch.storage import Attempt, Storage
from tests.batch.test_actor import worker_and_shards


def test_a_shard_has_a_receipt_with_the_sums_of_its_files(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan", "owl"])
    worker(shard)
    storage = worker.output.storage
    (name,) = storage.names(RECEIPTS)
    receipt = Receipt.from_json(storage.read(f"{RECEIPTS}/{name}"))
    assert (receipt.done, receipt.rejected) == (2, 1)
    assert worker.output.count(shard.name) == (2, 1)
    for file, total in (
        (worker.output.data(shard.name), receipt.data_sum),
        (worker.output.rejected(shard.name), receipt.rejects_sum),
    ):
        with storage.open(file) as opened:
            assert sum_of(opened) == total


def test_the_data_file_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert order == ["rejected", "receipts", "data"]


def test_of_two_makers_that_differ_the_published_one_counts(tmp_path: Path) -> None:
    worker, (shard,) = worker_and_shards(tmp_path, ["fox", "nan"])
    worker(shard)
    output: Output = worker.output
    other = Receipt(
        shard=shard.name, done=2, rejected=0, data_sum="0" * 64, data_bytes=1, rejects_sum=None
    )
    output.storage.replace(f"{RECEIPTS}/{other.name}", other.as_json())
    assert output.count(shard.name) == (1, 1)
