"""One picture to make: a row of a manifest, and which of its samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batch.manifest import Row
from batch.shards import Shard
from schemas.records import RejectedRecord

PROMPT_KEPT = 1000  # characters of it, in a rejected record


@dataclass(frozen=True)
class Wish:
    """`number` counts the wishes of a shard in the order of its rows."""

    number: int
    row: Row
    sample: int


def wishes_of(shard: Shard, rows: Sequence[Row], samples: int) -> Iterator[Wish]:
    """What the shard asks for, in the order of its rows."""
    wanted = frozenset(shard.only)
    for row in rows:
        for sample in range(samples):
            if not wanted or (row.number, sample) in wanted:
                yield Wish((row.number - shard.first) * samples + sample, row, sample)


def rejected(wish: Wish, file: str, error: str, reason: str) -> RejectedRecord:
    """The record of a wish that is not granted."""
    prompt = wish.row.values.get("prompt")
    return RejectedRecord(
        key=wish.row.key,
        sample=wish.sample,
        manifest_file=file,
        row=wish.row.number,
        error=error,
        reason=reason,
        prompt=prompt[:PROMPT_KEPT] if isinstance(prompt, str) else None,
    )
