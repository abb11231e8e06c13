import dataclasses
from pathlib import Path

from batch.manifest import Manifest, RowReader
from batch.shards import plan
from batch.wishes import PROMPT_KEPT, rejected, wishes_of
from tests.batch.doubles import write_manifest


def test_wishes_are_numbered_in_the_order_of_rows_and_samples(tmp_path: Path) -> None:
    manifest = Manifest(str(write_manifest(tmp_path / "m.parquet", {"prompt": list("abcdef")})))
    shard = plan(manifest, 3, {})[1]
    rows = list(RowReader(manifest.fs).read(shard.file, shard.first, shard.rows))
    told = [(w.number, w.row.number, w.sample) for w in wishes_of(shard, rows, 2)]
    assert told == [(0, 3, 0), (1, 3, 1), (2, 4, 0), (3, 4, 1), (4, 5, 0), (5, 5, 1)]
    some = dataclasses.replace(shard, only=((4, 1), (5, 0)))
    assert [w.number for w in wishes_of(some, rows, 2)] == [3, 4]


def test_a_rejected_wish_says_where_it_stood(tmp_path: Path) -> None:
    columns = {"prompt": ["x" * 5000], "key": ["k"]}
    manifest = Manifest(str(write_manifest(tmp_path / "m.parquet", columns)))
    (shard,) = plan(manifest, 3, {})
    rows = list(RowReader(manifest.fs).read(shard.file, 0, 1))
    (wish,) = wishes_of(shard, rows, 1)
    record = rejected(wish, "m.parquet", "RowRaised", "no")
    assert (record.key, record.row, record.error, record.reason) == ("k", 0, "RowRaised", "no")
    assert record.prompt == "x" * PROMPT_KEPT
