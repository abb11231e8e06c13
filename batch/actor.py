"""One worker: a shard in, its files written, a small report out. Knows nothing of Ray.

Up to two shards are in one worker's hands: while the stage computes one, the other is encoded and
written. One thread alone drives the card.
"""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from batch.belt import Belt
from batch.crumb import Crumb
from batch.errors import MachineFault, OutputError
from batch.manifest import RowReader
from batch.memory import give_back
from batch.output import RECIPE, Output, unseen
from batch.parts import Parts
from batch.publish import publish
from batch.report import Pulse, ShardReport, State
from batch.shards import Shard
from batch.stages.base import Stage
from batch.storage import open_uri
from batch.wishes import Wish, rejected, wishes_of
from schemas.jobs import Job, row_of
from schemas.records import Record

LARGE = 32 * 2**20  # bytes of a shard file that leave a mark on a process
UNWRITTEN = 16  # finished records of a shard that wait for the disk
Refused = dict[int, str]  # rows that are not to be tried, and why, as "Class: words"


class ShardWorker:
    """Reads a shard's rows, hands them to its stage and publishes what comes back."""

    def __init__(self, job: Job, stage: Stage, crumb: Path | None = None) -> None:
        self.job, self.stage = job, stage
        self.output = Output(job.output, job.format)
        self.reader = RowReader(open_uri(job.manifest)[0], row_of(job))
        self.reading = threading.Lock()
        self.card = ThreadPoolExecutor(1, "card")
        self.watch = Watchman(crumb)

    def setup(self) -> None:
        """Load what the stage needs; refuse an output that other weights have made, and one that is
        not the driver's: a node that came later may have a folder of that name on its own disk."""
        if not self.output.storage.exists(RECIPE):
            raise OutputError(unseen(self.output.storage.uri, socket.gethostname()))
        if not self.output.storage.local:
            self.output.storage.sweep()  # attempts lie on each worker's own disk
        self.card.submit(self.stage.setup).result()
        self.output.identify(self.stage.fingerprint)

    def leave(self) -> None:
        """Begin nothing more: shards in hand end with what is finished of them in parts."""
        self.watch.asked_to_leave.set()

    def pulse(self) -> Pulse:
        """What the worker is doing, without waiting for it."""
        return self.watch.pulse()

    def __call__(
        self, shard: Shard, refused: Refused | None = None, rows: Sequence[int] | None = None
    ) -> ShardReport:
        """Make the shard unless it is there; with `rows`, only their records, into parts."""
        began = time.monotonic()
        if self.output.storage.exists(self.output.data(shard.name)):
            return self._there(shard, began)
        wishes = self._wishes(shard)
        parts = Parts(self.output.storage, shard.name)
        twice = {
            row: f"DuplicateKey: the key stands first in {where}" for row, where in shard.duplicates
        }
        with self.watch.counting() as hand:  # until the report that counts them too
            self._work(shard, wishes, parts, twice | (refused or {}), rows, hand)
            if rows is not None or len(parts) < len(wishes):
                parts.flush()
                return self._report(shard, began, "part")
            return self._publish(shard, wishes, parts, began)

    def _wishes(self, shard: Shard) -> list[Wish]:
        with self.reading:
            rows = list(self.reader.read(shard.file, shard.first, shard.rows))
        return list(wishes_of(shard, rows, self.job.samples_per_row))

    def _work(
        self,
        shard: Shard,
        wishes: Sequence[Wish],
        parts: Parts,
        refused: Refused,
        rows: Sequence[int] | None,
        hand: int,
    ) -> None:
        """Records for what is wanted and not there yet, into `parts`."""
        todo = []
        for wish in wishes:
            if wish.number in parts or (rows is not None and wish.row.number not in rows):
                continue
            if wish.row.number in refused:
                name, _, reason = refused[wish.row.number].partition(": ")
                parts.add(wish.number, rejected(wish, shard.file.name, name, reason))
            else:
                todo.append(wish)
        if not todo:
            return
        made: Belt[tuple[Wish, Future[Record]]] = Belt(UNWRITTEN)
        computing = self.card.submit(self._compute, shard, todo, parts, made)
        try:
            for wish, record in made:
                parts.add(wish.number, record.result())
                self.watch.finished[hand] += 1
            computing.result()
        except BaseException:
            made.leave()
            parts.flush()
            raise

    def _compute(
        self,
        shard: Shard,
        wishes: Sequence[Wish],
        parts: Parts,
        made: Belt[tuple[Wish, Future[Record]]],
    ) -> None:
        """Drive the stage, in the card's thread."""
        began = time.monotonic()
        parts.rest()
        try:
            for item in self.stage(wishes, shard.file.name, self.watch.over(shard.name)):
                if not made.put_when(item[1], item):
                    break
        except MachineFault as error:
            error.rows = self.watch.rows
            raise
        finally:
            made.close()
            self.watch.idle(time.monotonic() - began)

    def _publish(
        self, shard: Shard, wishes: Sequence[Wish], parts: Parts, began: float
    ) -> ShardReport:
        fields = [shard.file.schema.field(name) for name in self.job.passthrough]
        records = parts.records([wish.number for wish in wishes])
        granted = zip(wishes, records, strict=True)
        wanted = self.card.submit(self.stage.beside, shard, wishes).result()
        beside = [(name, partial(self._on_card, write)) for name, write in wanted]
        try:
            receipt = publish(self.output, shard, granted, fields, self.stage.write, beside)
        except FileNotFoundError:  # another run has published the shard and taken its parts away
            if not self.output.storage.exists(self.output.data(shard.name)):
                raise
            receipt = None
        parts.remove()
        if receipt is None:
            return self._there(shard, began)
        if receipt.data_bytes > LARGE:
            give_back()
        return self._report(shard, began, "published", (receipt.done, receipt.rejected))

    def _on_card(self, write: Callable[[BinaryIO], None], file: BinaryIO) -> None:
        """Write a file whose content is computed as it is written."""
        self.card.submit(write, file).result()

    def _there(self, shard: Shard, began: float) -> ShardReport:
        return self._report(shard, began, "there", self.output.count(shard.name))

    def _report(
        self, shard: Shard, began: float, state: State, counts: tuple[int, int] = (0, 0)
    ) -> ShardReport:
        return ShardReport(
            shard=shard.name,
            state=state,
            done=counts[0],
            rejected=counts[1],
            seconds=time.monotonic() - began,
            host=socket.gethostname(),
            deviations=tuple(self._deviations()),
        )

    def _deviations(self) -> Iterator[float]:
        """Each is told once."""
        while self.stage.deviations:
            yield self.stage.deviations.pop()


@dataclass
class Watchman:
    """Knows what the worker is at: for the crumb, for whoever asks, and for how long."""

    path: Path | None
    asked_to_leave: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.crumb = Crumb(self.path) if self.path else None
        self.stage, self.since, self.slowest, self.busy = "", time.monotonic(), 0.0, 0.0
        self.rows: tuple[int, ...] = ()
        self.hands = itertools.count()
        self.finished: dict[int, int] = {}

    def over(self, shard: str) -> "Over":
        return Over(self, shard)

    @contextmanager
    def counting(self) -> Iterator[int]:
        """A number under which finished records of one shard are counted, while it is in hand."""
        hand = next(self.hands)
        self.finished[hand] = 0
        try:
            yield hand
        finally:
            del self.finished[hand]

    def at(self, stage: str, shard: str, wishes: Sequence[Wish]) -> None:
        self._turn(stage)
        self.rows = tuple(sorted({wish.row.number for wish in wishes}))
        if self.crumb:
            self.crumb.write(shard, self.rows)

    def idle(self, busy: float) -> None:
        """The card has nothing to do; it had, for so many seconds."""
        self._turn("")
        self.busy += busy

    def _turn(self, stage: str) -> None:
        now = time.monotonic()
        if self.stage and self.rows:
            self.slowest = max(self.slowest, now - self.since)
        self.stage, self.since = stage, now

    def pulse(self) -> Pulse:
        return Pulse(
            stage=self.stage,
            seconds=time.monotonic() - self.since if self.stage else 0.0,
            slowest=self.slowest,
            rows=len(self.rows),
            busy=self.busy,
            finished=sum(list(self.finished.values())),
        )


@dataclass(frozen=True)
class Over:
    """Listens to the stage while it works on one shard."""

    watchman: Watchman
    shard: str

    def at(self, stage: str, wishes: Sequence[Wish]) -> None:
        self.watchman.at(stage, self.shard, wishes)

    def leaving(self) -> bool:
        return self.watchman.asked_to_leave.is_set()
