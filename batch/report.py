"""What became of a shard, and of a run."""

import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

SHARE_FROM = 100  # pictures
SHARDS_TOLD = 10_000
OWN_WORDS = ("shards", "deviations")

# published: by this worker; there: another run was first; part: some of its rows are kept in parts
State = Literal["published", "there", "part"]


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What a worker is at: the stage of a micro-batch, its rows (none, if no row is to blame for
    it) and for how long, the longest one so far, seconds that the card has worked, and records
    finished in shards that are not reported yet."""

    stage: str
    rows: int
    seconds: float
    slowest: float
    busy: float
    finished: int


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """Small, and the only thing that travels from a worker to the driver."""

    shard: str
    state: State
    done: int
    rejected: int
    seconds: float
    host: str
    deviations: tuple[float, ...] = ()  # of sampled rows' latents, relative, from the exact ones


@dataclass
class RunReport:
    """Counts of pictures: wanted, in the dataset, rejected, and found there at the start."""

    rows: int
    done: int = 0
    rejected: int = 0
    skipped: int = 0
    lost_workers: int = 0
    busy_seconds: float = 0.0  # of all cards together
    started: float = field(default_factory=time.time)
    shards: list[ShardReport] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)

    def add(self, report: ShardReport) -> None:
        """Count a shard; one of which only a part is kept is counted when it is whole."""
        self.deviations += report.deviations
        if report.state != "part":
            self.shards.append(report)
            self.done += report.done
            self.rejected += report.rejected

    def over(self, most: float | None) -> bool:
        """Whether more is rejected than a job allows: a number, or below 1 a share of what is
        finished, looked at from a hundred on."""
        if most is None:
            return False
        if most >= 1:
            return self.rejected > most
        return self.finished >= SHARE_FROM and self.rejected > most * self.finished

    @property
    def finished(self) -> int:
        return self.done + self.rejected

    def rate(self, now: float, underway: int = 0) -> float:
        """Rows that this run has finished a second."""
        made = self.finished + underway - self.skipped
        return made / max(now - self.started, 1e-9)

    def line(self, now: float, underway: int = 0) -> str:
        """Progress in words: rows done of total, rows a second, rejected, time left. `underway`
        are finished in shards that are not."""
        finished = self.finished + underway
        rate = self.rate(now, underway)
        left = f"{(self.rows - finished) / rate:.0f} s left" if rate else "time left unknown"
        count = f"{finished} of {self.rows} rows, {rate:.2f} rows/s"
        return f"{count}, {self.rejected} rejected, {left}"

    def as_json(self, state: str) -> dict[str, Any]:
        """For `_run/reports/`: what differs between runs belongs here and nowhere else. The shards
        one by one when the run has ended, unless they are very many."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OWN_WORDS}
        told |= {"state": state, "written": time.time(), "finished_shards": len(self.shards)}
        if self.deviations:
            told["deviation_of_latents"] = {
                "rows": len(self.deviations),
                "mean": sum(self.deviations) / len(self.deviations),
                "largest": max(self.deviations),
            }
        if state != "running" and len(self.shards) <= SHARDS_TOLD:
            told["shards"] = [asdict(shard) for shard in self.shards]
        return told
