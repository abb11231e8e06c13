"""Shards of a distillation job: consecutive rows of one size, so that a file has one bucket, and
which of its rows bring the text of a caption that no earlier row has."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from batch.errors import ManifestError
from batch.manifest import Manifest, ManifestFile
from batch.shards import Shard, digest, plan
from flux_engine.sizes import training_size
from schemas.jobs import DistillJob
from schemas.sampling import GRID, LARGEST_SIDE
from schemas.targets import OfPictures

SIZES = ("image_width", "image_height")
READ = 2**14  # rows at a time
COLUMNS = (
    *("prompt", "caption", "negative_prompt", "cfg_scale", "t5_sequence_length"),
    *("height", "width", "loras", *SIZES),
)
Size = tuple[int, int]


def target_plan(manifest: Manifest, job: DistillJob) -> list[Shard]:
    """All shards, in the manifest's order; a pure function of manifest and job."""
    seen: set[bytes] = set()
    out: list[Shard] = []
    by_file: dict[str, list[Shard]] = {}
    for shard in plan(manifest, job.rows_per_shard, job.recipe()):
        by_file.setdefault(shard.file.name, []).append(shard)
    for file in manifest.files:
        rows = rows_of(manifest, file)
        for shard in by_file.get(file.name, ()):
            some = [next(rows) for _ in range(shard.rows)]
            out += split(shard, some, job, seen)
    return out


def rows_of(manifest: Manifest, file: ManifestFile) -> Iterator[Mapping[str, Any]]:
    """What a plan has to know of each row, as the file has it."""
    asked = {*file.schema.names} - {*file.history}
    columns = [name for name in COLUMNS if name in asked]
    with manifest.fs.open_input_file(file.path) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(READ, columns=columns):
            yield from batch.to_pylist()


def split(
    shard: Shard, rows: list[Mapping[str, Any]], job: DistillJob, seen: set[bytes]
) -> list[Shard]:
    """The shard's rows by their size. Of a row whose size makes no sense the first file says so."""
    sizes: dict[Size, list[int]] = {}
    lost: list[int] = []
    for number, row in enumerate(rows, shard.first):
        size = size_of(row, job)
        if size is None:
            lost.append(number)
        else:
            sizes.setdefault(size, []).append(number)
    if not sizes:
        jobs = {"height": job.sampling.height, "width": job.sampling.width}
        sizes[size_of(jobs, job) or (0, 0)] = []
    out = []
    for (height, width), numbers in sizes.items():
        mine = sorted([*numbers, *lost])
        lost = []
        bucket = f"{height}x{width}"
        stem = shard.name.rpartition("-")[0]
        whole = len(mine) == shard.rows  # millions of rows are not named one by one
        only = () if whole else tuple((n, s) for n in mine for s in range(job.samples_per_row))
        here = set(mine)
        texts = [(n, k) for n in mine for k in new(rows[n - shard.first], job, seen)]
        out.append(
            replace(
                shard,
                name=f"{stem}-{bucket}-{digest([shard.name, bucket])}",
                only=only,
                bucket=bucket,
                texts=tuple(texts) if job.store_text else (),
                duplicates=tuple(pair for pair in shard.duplicates if pair[0] in here),
            )
        )
    return out


def size_of(row: Mapping[str, Any], job: DistillJob) -> Size | None:
    """A row's height and width, or None if no picture has them: what the row says, else what
    follows from its picture where the target goes by that, else the job's."""
    if max_pixels_of(job) is not None:
        follows = dynamic_size(row, job)
        if follows is None:
            return None
        row = {**row} | follows
    out = []
    for name in ("height", "width"):
        value = row.get(name)
        value = getattr(job.sampling, name) if value is None else value
        if not isinstance(value, int | float) or not GRID <= value <= LARGEST_SIDE or value % GRID:
            return None
        out.append(int(value))
    return out[0], out[1]


def max_pixels_of(job: DistillJob) -> int | None:
    return job.target.max_pixels if isinstance(job.target, OfPictures) else None


def dynamic_size(row: Mapping[str, Any], job: DistillJob) -> dict[str, int] | None:
    """Height and width that follow from a row's picture; nothing if the row says both itself, None
    if neither it nor its picture's columns do."""
    target = job.target
    assert isinstance(target, OfPictures)
    assert target.max_pixels is not None
    said = [row.get(name) is not None for name in ("height", "width")]
    if all(said):
        return {}
    width, height = (row.get(name) for name in SIZES)
    if any(said) or not isinstance(width, int) or not isinstance(height, int):
        return None
    if min(width, height) < 1:
        return None
    width, height = training_size(width, height, target.max_pixels, target.bucket_step)
    return {"height": height, "width": width}


def check_sizes(manifest: Manifest, job: DistillJob) -> None:
    """ManifestError for a file whose rows cannot have sizes of their own, or no masks, although the
    target wants them."""
    for file in manifest.files:
        names = {*file.schema.names}
        if max_pixels_of(job) is not None and not (
            {*SIZES} <= names or {"height", "width"} <= names
        ):
            raise ManifestError(
                f"{file.path}: target.max_pixels wants the columns {' and '.join(SIZES)}, which "
                "training shards have (jobs.ingest makes them), or height and width"
            )
        if getattr(job.target, "mask", False) and "mask" not in names:
            raise ManifestError(f"{file.path}: target.mask wants a column mask; it has none")


def new(row: Mapping[str, Any], job: DistillJob, seen: set[bytes]) -> Iterator[int]:
    """Which of a row's captions are met for the first time; they are known from then on."""
    for number, caption in captions(row, job):
        key = hashlib.blake2b(json.dumps(caption).encode(), digest_size=12).digest()
        if key not in seen:
            seen.add(key)
            yield number


def captions(row: Mapping[str, Any], job: DistillJob) -> Iterator[tuple[int, list[Any]]]:
    """All that decides each of a row's texts: of the prompt (0), and of the negative one (1) if it
    counts."""
    told = job.sampling
    length = row.get("t5_sequence_length") or told.t5_sequence_length
    worn = row.get("loras")
    loras = [entry.model_dump() for entry in told.loras] if worn is None else worn
    prompt = row.get("prompt")
    prompt = row.get("caption") if prompt is None else prompt
    if prompt is not None:
        yield 0, [prompt, length, loras]
    scale = told.cfg_scale if row.get("cfg_scale") is None else row["cfg_scale"]
    if scale != 1.0 or getattr(job.target, "unconditional", False):
        negative = row.get("negative_prompt")
        yield 1, [told.negative_prompt if negative is None else negative, length, loras]
