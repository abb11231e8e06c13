"""What a worker and the stage that works in it know of each other."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from batch.publish import Beside, Written
from batch.shards import Shard
from batch.wishes import Wish
from schemas.records import Record


class Listener(Protocol):
    """Told what a stage is about to do, and asked whether to go on."""

    def at(self, stage: str, wishes: Sequence[Wish]) -> None:
        """These are next: if the process dies now, one of them may be why."""

    def leaving(self) -> bool:
        """Whether to leave what has not been begun undone."""


class Stage(Protocol):
    """What a worker does to the rows of a shard."""

    fingerprint: dict[str, Any]
    deviations: list[float]  # from the exact answer, of sampled rows; whoever reports takes them

    def setup(self) -> None:
        """Load what is needed; once in a worker's life."""

    def __call__(
        self, wishes: Sequence[Wish], file: str, listener: Listener
    ) -> Iterator[tuple[Wish, Future[Record]]]:
        """Each wish with the record that it will have, in any order."""

    def write(self, file: BinaryIO, records: Written, passthrough: list[pa.Field]) -> int:
        """Put a shard's records, in this order, into a file; how many there were."""

    def beside(self, shard: Shard, wishes: Sequence[Wish]) -> Beside:
        """Files that have to be there before the shard's own, by name; called in the card's thread,
        which writes them too."""
