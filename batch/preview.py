"""What a run would do: its shards, its buckets, and the rows that would be rejected."""

from collections import Counter
from dataclasses import dataclass, field

from batch.manifest import Manifest, Row, RowReader
from batch.shards import Shard, count_rows
from batch.target_plan import dynamic_size, max_pixels_of
from schemas.base import SchemaError
from schemas.jobs import DistillJob, GenerateJob, row_of
from schemas.manifest import PromptRow
from schemas.sampling import Sampling

FAULTS_SHOWN = 20


@dataclass
class Preview:
    """Counts by what the rows say; nothing is loaded."""

    shards: int
    rows: int
    pictures: int
    buckets: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Sampling] = field(default_factory=dict)
    faulty: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, job: GenerateJob | DistillJob, shard: Shard, row: Row, first: str | None) -> None:
        if first is not None:
            self._fault(shard, row, f"the key stands first in {first}")
        elif not isinstance(row.parsed, PromptRow):
            self._fault(shard, row, row.fault or "")
        else:
            own = {k: v for k in Sampling.model_fields if (v := getattr(row.parsed, k)) is not None}
            if isinstance(job, DistillJob) and max_pixels_of(job) is not None:
                size = dynamic_size(row.values, job)
                own |= {"height": 0} if size is None else size  # the former is refused
            try:
                kind = Sampling.parse(job.sampling.model_dump() | own)
                self.buckets[bucket(kind)] += 1
                self.kinds.setdefault(bucket(kind), kind)
            except SchemaError as error:
                self._fault(shard, row, str(error))

    def _fault(self, shard: Shard, row: Row, why: str) -> None:
        self.faulty += 1
        if len(self.faults) < FAULTS_SHOWN:
            self.faults.append(f"{shard.file.name}:{row.number}: {why}")

    def lines(self) -> list[str]:
        out = [f"{self.shards} shards, {self.rows} rows, {self.pictures} pictures"]
        out += [f"  {count:>8} rows  {name}" for name, count in sorted(self.buckets.items())]
        if self.faulty:
            out.append(f"  {self.faulty:>8} rows would be rejected:")
            out += [f"           {line}" for line in self.faults]
            if self.faulty > len(self.faults):
                out.append(f"           and {self.faulty - len(self.faults)} more")
        return out


def bucket(sampling: Sampling) -> str:
    """What rows share when they share a micro-batch, in words."""
    guided = ", cfg with negative prompt" if sampling.cfg_scale != 1.0 else ""
    shift = "" if sampling.sigma_shift is None else f" shift {sampling.sigma_shift:g}"
    return (
        f"{sampling.width}×{sampling.height}, {sampling.num_inference_steps} steps, "
        f"{sampling.schedule} schedule{shift}, {sampling.t5_sequence_length} tokens{guided}"
    )


def preview(job: GenerateJob | DistillJob, manifest: Manifest, shards: list[Shard]) -> Preview:
    """Parse every row; ManifestError has been ruled out before."""
    rows = count_rows(shards)
    out = Preview(len(shards), rows, rows * job.samples_per_row)
    reader = RowReader(manifest.fs, row_of(job))
    for shard in shards:
        repeated = dict(shard.duplicates)
        for row in reader.read(shard.file, shard.first, shard.rows):
            if shard.holds(row.number):
                out.add(job, shard, row, repeated.get(row.number))
    return out
