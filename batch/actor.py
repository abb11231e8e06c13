"""One worker: a shard in, its files written, a small report out. Knows nothing of Ray."""

import socket
import time
from typing import Any, Protocol

import pyarrow.parquet as pq

from batch.manifest import Row, RowReader
from batch.output import Output
from batch.report import ShardReport
from batch.shards import Shard
from batch.sink import to_parquet, to_rejected, to_tar
from batch.storage import open_uri
from schemas.jobs import GenerateJob
from schemas.records import ImageRecord, Record, RejectedRecord


class Stage(Protocol):
    """What a worker does to rows."""

    fingerprint: dict[str, Any]

    def setup(self) -> None: ...
    def __call__(self, rows: list[Row], refused: dict[int, str], file: str) -> list[Record]: ...


class ShardWorker:
    """Reads a shard's rows, hands them to its stage and publishes what comes back."""

    def __init__(self, job: GenerateJob, stage: Stage) -> None:
        self.job, self.stage = job, stage
        self.output = Output(job.output, job.format)
        self.reader = RowReader(open_uri(job.manifest)[0])

    def setup(self) -> None:
        """Load what the stage needs, and refuse an output that other weights have made."""
        self.stage.setup()
        self.output.identify(self.stage.fingerprint)

    def __call__(self, shard: Shard, refused: dict[int, str] | None = None) -> ShardReport:
        """Make the shard unless it is there. `refused`: rows not to be tried, and why."""
        began = time.monotonic()
        if self.output.storage.exists(self.output.data(shard.name)):
            return self._there(shard, began)
        rows = list(self.reader.read(shard.file, shard.first, shard.rows))
        twice = {
            row: f"DuplicateKey: the key stands first in {where}" for row, where in shard.duplicates
        }
        records = self.stage(rows, twice | (refused or {}), shard.file.name)
        return self._publish(shard, rows, records, began)

    def probe(self, shard: Shard, row: int) -> None:
        """Try one row and throw the answer away: if the process survives, the row is innocent."""
        rows = list(self.reader.read(shard.file, row, 1))
        self.stage(rows, {}, shard.file.name)

    def _publish(
        self, shard: Shard, rows: list[Row], records: list[Record], began: float
    ) -> ShardReport:
        values = [row.values for row in rows for _ in range(self.job.samples_per_row)]
        good = [
            (record, {name: carried[name] for name in self.job.passthrough})
            for record, carried in zip(records, values, strict=True)
            if isinstance(record, ImageRecord)
        ]
        bad = [record for record in records if isinstance(record, RejectedRecord)]
        fields = [shard.file.schema.field(name) for name in self.job.passthrough]
        storage = self.output.storage
        # rejects first: the data file is the marker that says a shard is done
        if bad:
            storage.replace(self.output.rejected(shard.name), to_rejected(bad))
        else:
            storage.remove(self.output.rejected(shard.name))
        if self.job.format == "webdataset":
            data: Any = to_tar(good, self.job.image_format)
        else:
            data = to_parquet(good, fields, self.job.image_format)
        published = storage.create(self.output.data(shard.name), data)
        return self._report(shard, len(good), len(bad), began, published=published)

    def _there(self, shard: Shard, began: float) -> ShardReport:
        bad = 0
        name = self.output.rejected(shard.name)
        if self.output.storage.exists(name):
            with self.output.storage.open(name) as file:
                bad = pq.read_metadata(file).num_rows
        done = shard.rows * self.job.samples_per_row - bad
        return self._report(shard, done, bad, began, published=False)

    def _report(
        self, shard: Shard, done: int, bad: int, began: float, *, published: bool
    ) -> ShardReport:
        return ShardReport(
            shard=shard.name,
            done=done,
            rejected=bad,
            seconds=time.monotonic() - began,
            host=socket.gethostname(),
            published=published,
        )
