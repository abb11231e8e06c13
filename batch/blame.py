"""Which row is to blame when a worker dies: the rows that it was at are struck, twice, then tried
alone."""

from collections import Counter
from collections.abc import Sequence

from batch.errors import RunFailed
from batch.shards import Shard

STRIKES = 2  # until a row is tried alone
DEATHS = 8  # of workers that had a shard in hand, until all its rows are tried alone


class Blame:
    """Counts what happened to rows and shards. Who dies of a machine's end is not struck."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.refused: dict[str, dict[int, str]] = {}  # by shard: rows not to be tried, and why
        self._strikes: Counter[tuple[str, int]] = Counter()
        self._deaths: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._tried: set[tuple[str, int]] = set()

    def strike(self, shard: Shard, rows: Sequence[int]) -> list[int]:
        """A worker ended while it was at these rows; those that are now to be tried alone."""
        for row in rows:
            self._strikes[shard.name, row] += 1
        return self._suspects(shard, [r for r in rows if self._strikes[shard.name, r] >= STRIKES])

    def death(self, shard: Shard) -> list[int]:
        """A worker ended that had this shard in hand, whatever it was at; RunFailed if that goes on
        although each row was tried alone."""
        self._deaths[shard.name] += 1
        if self._deaths[shard.name] > DEATHS + self.retries:
            raise RunFailed(
                f"shard {shard.name}: {self._deaths[shard.name]} workers died that had it in hand, "
                "and none of its rows does that alone"
            )
        if self._deaths[shard.name] < DEATHS:
            return []
        return self._suspects(shard, range(shard.first, shard.first + shard.rows))

    def failure(self, shard: Shard, why: BaseException) -> None:
        """A worker raised what no row is known to be to blame for; RunFailed if it goes on."""
        self._failures[shard.name] += 1
        if self._failures[shard.name] > self.retries:
            times = self._failures[shard.name]
            raise RunFailed(f"shard {shard.name} failed {times} times, last with: {why}")

    def refuse(self, shard: Shard, row: int, why: str) -> None:
        """The row did it alone."""
        self.refused.setdefault(shard.name, {})[row] = why

    def _suspects(self, shard: Shard, rows: Sequence[int]) -> list[int]:
        """Those that were not tried alone before."""
        fresh = [row for row in rows if (shard.name, row) not in self._tried]
        self._tried.update((shard.name, row) for row in fresh)
        return fresh
