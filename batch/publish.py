"""A finished shard's files: a receipt, the data, which says that it is done, and the rejects.

The data is created by whoever is first, and only that one shows its rejects: of two runs whose rows
fared differently (a web address that answered one of them), the rejects are those of the data that
stands. A copy of them lies beside the receipt before, so that a death in between loses no row.
"""

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from batch.output import Output
from batch.receipt import RECEIPTS, Receipt, sum_of
from batch.retry import previous
from batch.shards import Shard
from batch.sink import Carried, to_rejected, write_parquet, write_tar
from batch.wishes import Wish
from schemas.records import ImageRecord, Record, RejectedRecord


def publish(
    output: Output,
    shard: Shard,
    granted: Iterable[tuple[Wish, Record]],
    passthrough: list[pa.Field],
    kind: str,
) -> Receipt | None:
    """Write these records, in their order, as the shard; its receipt, or None if another run was
    first."""
    bad: list[RejectedRecord] = []

    def good() -> Iterator[tuple[ImageRecord, Carried]]:
        for wish, record in granted:
            if isinstance(record, RejectedRecord):
                bad.append(record)
            else:
                yield record, {field.name: wish.row.values[field.name] for field in passthrough}

    storage = output.storage
    with storage.attempt() as attempt:
        with attempt.path.open("wb") as file:
            if output.suffix == ".tar":
                done = write_tar(file, good(), kind)
            else:
                done = write_parquet(file, good(), passthrough, kind)
        rejects = to_rejected(bad) if bad else None
        with attempt.path.open("rb") as written:
            receipt = Receipt(
                shard=shard.name,
                done=done,
                rejected=len(bad),
                data_sum=sum_of(written),
                data_bytes=attempt.path.stat().st_size,
                rejects_sum=None if rejects is None else hashlib.sha256(rejects).hexdigest(),
            )
        if rejects is not None:
            storage.replace(f"{RECEIPTS}/{receipt.rejects}", rejects)
        storage.replace(f"{RECEIPTS}/{receipt.name}", receipt.as_json())
        published = storage.publish(attempt, output.data(shard.name))
        if published and rejects is not None:
            storage.replace(output.rejected(shard.name), rejects)
    if (earlier := previous(shard.name)) is not None:
        storage.remove(output.rejected(earlier))  # their rows are in this shard now
    return receipt if published else None
