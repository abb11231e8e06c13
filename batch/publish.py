"""A finished shard's files: a receipt, the data, which says that it is done, and the rejects.

The data is created by whoever is first, and only that one shows its rejects: of two runs whose rows
fared differently (a web address that answered one of them), the rejects are those of the data that
stands. A copy of them lies beside the receipt before, so that a death in between loses no row.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa

from batch.output import Output
from batch.receipt import RECEIPTS, Receipt, sum_of
from batch.retry import previous
from batch.shards import Shard
from batch.sink import Carried, to_rejected
from batch.storage import Storage
from batch.wishes import Wish
from schemas.records import Made, Record, RejectedRecord

Written = Iterable[tuple[Made, Carried]]
Write = Callable[[BinaryIO, Written, list[pa.Field]], int]
Beside = Sequence[tuple[str, Callable[[BinaryIO], None]]]


def publish(
    output: Output,
    shard: Shard,
    granted: Iterable[tuple[Wish, Record]],
    passthrough: list[pa.Field],
    write: Write,
    beside: Beside = (),
) -> Receipt | None:
    """Write these records, in their order, as the shard; its receipt, or None if another run was
    first. `write` knows how, and answers how many there were; files `beside` come first."""
    bad: list[RejectedRecord] = []

    def good() -> Iterator[tuple[Made, Carried]]:
        for wish, record in granted:
            if isinstance(record, RejectedRecord):
                bad.append(record)
            else:
                yield record, {field.name: wish.row.values[field.name] for field in passthrough}

    storage = output.storage
    sums = {name: put(storage, name, writer) for name, writer in beside}
    with storage.attempt() as attempt:
        with attempt.path.open("wb") as file:
            done = write(file, good(), passthrough)
        rejects = to_rejected(bad) if bad else None
        with attempt.path.open("rb") as written:
            receipt = Receipt(
                shard=shard.name,
                done=done,
                rejected=len(bad),
                data_sum=sum_of(written),
                data_bytes=attempt.path.stat().st_size,
                rejects_sum=None if rejects is None else hashlib.sha256(rejects).hexdigest(),
                beside=sums,
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


def put(storage: Storage, name: str, write: Callable[[BinaryIO], None]) -> str:
    """Create a file unless it is there; the SHA-256 of what stands there then."""
    with storage.attempt() as attempt:
        with attempt.path.open("wb") as file:
            write(file)
        with attempt.path.open("rb") as written:
            total = sum_of(written)
        if storage.publish(attempt, name):
            return total
    with storage.open(name) as there:  # an earlier attempt's, of a plan with fewer files, say
        return sum_of(there)
