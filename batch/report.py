"""What became of a shard, and of a run."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """Small, and the only thing that travels from a worker to the driver."""

    shard: str
    done: int
    rejected: int
    seconds: float
    host: str
    published: bool  # False: another run had published the shard first


@dataclass
class RunReport:
    """Counts of pictures: wanted, in the dataset, rejected, and found there at the start."""

    rows: int
    done: int = 0
    rejected: int = 0
    skipped: int = 0
    lost_workers: int = 0
    started: float = field(default_factory=time.time)
    shards: list[ShardReport] = field(default_factory=list)

    def add(self, report: ShardReport) -> None:
        self.shards.append(report)
        self.done += report.done
        self.rejected += report.rejected

    @property
    def finished(self) -> int:
        return self.done + self.rejected

    def line(self, now: float) -> str:
        """Progress in words: rows done of total, rows a second, rejected, time left."""
        seconds = max(now - self.started, 1e-9)
        rate = (self.finished - self.skipped) / seconds
        left = f"{(self.rows - self.finished) / rate:.0f} s left" if rate else "time left unknown"
        count = f"{self.finished} of {self.rows} rows, {rate:.2f} rows/s"
        return f"{count}, {self.rejected} rejected, {left}"

    def as_json(self, state: str) -> dict[str, Any]:
        """For `_run/reports/`: what differs between runs belongs here and nowhere else."""
        return asdict(self) | {"state": state, "ended": time.time()}
