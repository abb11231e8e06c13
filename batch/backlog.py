"""What is still to be leased to workers: shards, pieces of shards, and rows to be tried alone."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batch.shards import Shard

SMALLEST_PIECE = 4  # rows
EVEN = 1.1  # times its share is what a worker may have at most
PIECES = 4  # of a shard, where workers come to it at different times


@dataclass(frozen=True)
class Lease:
    """A whole shard, to be published; or some rows of it, whose records are only kept."""

    shard: Shard
    rows: tuple[int, ...] | None = None
    alone: bool = False  # the row may kill: a worker that has nothing else tries it


class Backlog:
    """Leases in the order of the shards. One that comes back goes to the front."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._waiting = deque(Lease(shard) for shard in shards)
        self._alone: deque[Lease] = deque()
        self._owed: Counter[str] = Counter()  # answers until a shard is leased whole again
        self._cut: set[str] = set()  # shards are cut once: what then waits is to be published

    def __len__(self) -> int:
        return len(self._waiting) + len(self._alone)

    @property
    def pieces(self) -> int:
        """Into how many pieces all that waits could be cut."""
        return sum(-(-lease.shard.rows // SMALLEST_PIECE) for lease in self._waiting)

    @property
    def alone(self) -> int:
        """How many rows wait to be tried alone."""
        return len(self._alone)

    @property
    def ordinary(self) -> int:
        return len(self._waiting)

    def take(self) -> Lease | None:
        return self._waiting.popleft() if self._waiting else None

    def take_alone(self) -> Lease | None:
        return self._alone.popleft() if self._alone else None

    def give_back(self, lease: Lease) -> None:
        """Nothing came of it, and nobody is to blame yet."""
        (self._alone if lease.alone else self._waiting).appendleft(lease)

    def answered(self, lease: Lease) -> None:
        """A lease has ended; the last piece of a shard makes way for the whole."""
        if lease.rows is None:
            return
        name = lease.shard.name
        self._owed[name] -= 1
        if not self._owed[name]:
            del self._owed[name]
            self._waiting.appendleft(Lease(lease.shard))

    def suspect(self, shard: Shard, rows: Sequence[int]) -> None:
        """Try these rows alone, and what else waits of their shard after them."""
        mine = [lease for lease in self._waiting if lease.shard.name == shard.name]
        for lease in mine:
            self._waiting.remove(lease)
        self._owed[shard.name] += len(rows) - sum(lease.rows is not None for lease in mine)
        self._alone.extend(Lease(shard, (row,), alone=True) for row in rows)

    def split(self, workers: int, *, busy: bool = False) -> None:
        """Cut the last shards into pieces that so many workers can share evenly.

        If all of them are `busy`, some will have done with what they have in hand nearly a shard
        before others: as many shards as there are workers are kept to make up for that.
        """
        waiting = list(self._waiting)
        if not 0 < len(waiting) < workers + busy:
            return
        if any(lease.rows is not None for lease in waiting):
            return
        fresh = [lease.shard for lease in waiting if self._may_be_cut(lease.shard)]
        if not fresh:
            return
        rows = [shard.rows for shard in fresh]
        size = up(-(-max(rows) // PIECES)) if busy else piece_size(rows, workers)
        self._waiting = deque(
            piece for lease in waiting for piece in self._pieces(lease.shard, size)
        )

    def _may_be_cut(self, shard: Shard) -> bool:
        return shard.name not in self._owed and shard.name not in self._cut

    def _pieces(self, shard: Shard, size: int) -> list[Lease]:
        if size >= shard.rows or not self._may_be_cut(shard):
            return [Lease(shard)]
        self._cut.add(shard.name)
        end = shard.first + shard.rows
        pieces = [
            Lease(shard, tuple(range(first, min(first + size, end))))
            for first in range(shard.first, end, size)
        ]
        self._owed[shard.name] = len(pieces)
        return pieces


def up(rows: int) -> int:
    """The next multiple of the smallest piece."""
    return -(-rows // SMALLEST_PIECE) * SMALLEST_PIECE


def piece_size(rows: Sequence[int], workers: int) -> int:
    """Rows of a piece: the most with which no worker has much more than its share of these shards,
    a multiple of the smallest piece."""
    counts = Counter(rows)
    share = sum(rows) / workers
    largest = up(max(rows))

    def longest(size: int) -> int:
        """What some worker has to do."""
        pieces = sum(-(-each // size) * count for each, count in counts.items())
        return -(-pieces // workers) * size

    sizes = range(largest, 0, -SMALLEST_PIECE)
    even = (size for size in sizes if longest(size) <= EVEN * share)
    return next(even, None) or min(sizes, key=longest)
