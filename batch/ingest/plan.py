"""A source's rows as shards: listed where they have to be, Parquet as it lies there."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batch.errors import JobError, ManifestError
from batch.ingest.folder import FolderLister
from batch.ingest.lists import Lister, lists_of
from batch.ingest.place import Layout, here
from batch.ingest.table import TableLister
from batch.ingest.tars import TarLister
from batch.manifest import Manifest, misfit
from batch.output import Output
from batch.shards import Shard, plan
from schemas.ingest import FolderSource, Found, IngestJob, ParquetSource, TableSource
from schemas.records import TRAINING_COLUMNS

ATTEMPTS = 5  # at being the one who writes the next list


@dataclass(frozen=True)
class Survey:
    """What a run would find: how many entries there are, and how many of them are new."""

    job: IngestJob
    entries: int
    fresh: int

    def lines(self) -> list[str]:
        what = {"webdataset": "tars", "table": "rows", "parquet": "rows"}
        noun = what.get(self.job.layout.kind, "pictures and captions")
        found = self.job.found or Found()
        out = [f"{self.entries} {noun} in the source, {self.fresh} of them not yet planned"]
        for name, columns in (
            ("carried along", found.carried),
            ("with several files", found.several),
        ):
            if columns:
                out.append(f"columns {name}: {', '.join(columns)}")
        return out


def survey(job: IngestJob) -> Survey:
    """Looks and writes nothing; ManifestError, OutputError, SourceError as of `ingest_plan`."""
    layout = here(job)
    output = Output(job.output, job.format)
    if isinstance(layout, ParquetSource):
        manifest = Manifest(layout.path)
        job = found_in_parquet(job, layout, manifest)
        output.check(job.recipe, manifest.files)
        return Survey(job, manifest.rows, manifest.rows)
    lister = lister_of(layout)
    job = job.model_copy(update={"found": lister.found})
    output.check_recipe(job.recipe)
    fresh = lists_of(output.storage).missing(lister)
    return Survey(job, len(lister.entries()), len(fresh))


def ingest_plan(job: IngestJob) -> tuple[IngestJob, Manifest, list[Shard]]:
    """The job with what was found, its rows and shards; lists are written below the output, which
    is claimed first."""
    layout = here(job)
    if isinstance(layout, ParquetSource):
        manifest = Manifest(layout.path)
        job = found_in_parquet(job, layout, manifest)
    else:
        lister = lister_of(layout)
        job = job.model_copy(update={"found": lister.found})
        write_lists(job, lister)
        manifest = Manifest(job.manifest)
    if not manifest.rows:
        raise ManifestError(f"source {layout}: has no rows")
    manifest.check_files(job.passthrough)
    return job, manifest, plan(manifest, job.rows_per_shard, job.recipe())


def lister_of(layout: Layout) -> Lister:
    match layout:
        case FolderSource():
            return FolderLister(layout)
        case TableSource():
            return TableLister(layout)
        case ParquetSource():
            raise AssertionError("Parquet needs no list")
        case _:
            return TarLister(layout)


def write_lists(job: IngestJob, lister: Lister) -> None:
    """List what is new, if anything is."""
    output = Output(job.output, job.format)
    output.claim(job.recipe())
    for _ in range(ATTEMPTS):
        lists = lists_of(output.storage)
        fresh = lists.missing(lister)
        if not fresh:
            if not lists.known:
                raise ManifestError(f"the source of {job.output} is empty: there is nothing in it")
            return
        if lists.add(lister, fresh):
            return
    raise JobError(f"{job.output}: others keep listing the same source; let one of them finish")


def found_in_parquet(job: IngestJob, layout: ParquetSource, manifest: Manifest) -> IngestJob:
    """ManifestError for a file whose columns do not fit; the job with those that are carried."""
    if not manifest.rows:
        raise ManifestError(f"source {layout.path}: has no rows")
    first: Found | None = None
    for file in manifest.files:
        found = columns_of(job, layout, file.path, file.schema)
        if first is not None and found != first:
            raise ManifestError(
                f"{file.path}: has columns {found}, and {manifest.files[0].path} {first}"
            )
        first = found
    return job.model_copy(update={"found": first})


def columns_of(job: IngestJob, layout: ParquetSource, path: str, schema: pa.Schema) -> Found:
    names = schema.names
    files = {name: layout.image if name == "image" else name for name in job.file_keys}
    for name in (layout.caption, *files.values(), *layout.leave_out):
        if name not in names:
            raise ManifestError(f"{path}: has no column {name!r}; it has {', '.join(names)}")
    several = tuple(name for name, column in files.items() if is_list(schema.field(column).type))
    if "image" in several:
        raise ManifestError(f"{path}: column {layout.image!r} has several pictures a row")
    checks: dict[str, tuple[str, Any]] = {
        layout.caption: ("prompt", schema.field(layout.caption).type)
    }
    for name, column in files.items():
        kind = schema.field(column).type
        checks[column] = ("image", kind.value_type if name in several else kind)
    if "key" in names:
        checks["key"] = ("key", schema.field("key").type)
    for column, (meaning, kind) in checks.items():
        if allowed := misfit(meaning, kind):
            raise ManifestError(f"{path}: column {column!r} is {kind}; allowed is {allowed}")
    read = {layout.caption, *files.values(), "key", *layout.leave_out}
    carried = tuple(name for name in names if name not in read)
    if taken := [name for name in carried if name in {*TRAINING_COLUMNS, *files}]:
        raise ManifestError(
            f"{path}: column {taken[0]!r} is called as one of our own, which is made of another; "
            "source.leave_out names columns that are not taken along"
        )
    return Found(carried=carried, several=several)


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
