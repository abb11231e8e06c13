"""What a row of a source says, be it in a list of ours or in Parquet as it was found."""

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batch.ingest.lists import CAPTION, ENTRY, FAULT
from schemas.ingest import IngestJob, ParquetSource


@dataclass(frozen=True)
class Ref:
    """A file: its bytes, or where they are; of a tar's member its place in there."""

    path: str | None = None
    bytes: builtins.bytes | None = None
    span: tuple[int, int] | None = None  # offset and size

    @property
    def name(self) -> str:
        """As it may be told."""
        place = f" at {self.span[0]}" if self.span else ""
        return f"{self.path or 'its bytes'}{place}"


@dataclass(frozen=True)
class Line:
    """A caption or where it is, and files by column. `where` is the row's place in the source."""

    where: str
    prompt: str | None
    caption: Ref | None
    files: Mapping[str, Ref | tuple[Ref, ...] | None]
    fault: str | None = None


def line_of(job: IngestJob, values: Mapping[str, Any], place: str) -> Line:
    """`place` says where the row stands in Parquet."""
    layout = job.layout
    if isinstance(layout, ParquetSource):
        columns = {name: layout.image if name == "image" else name for name in job.file_keys}
        files = {name: refs_of(values.get(column)) for name, column in columns.items()}
        return Line(place, values.get(layout.caption), None, files)
    return Line(
        where=f"{values[ENTRY]}" if layout.kind == "table" else str(values["key"]),
        prompt=values["prompt"],
        caption=ref_of(values[CAPTION]),
        files={name: refs_of(values.get(name)) for name in job.file_keys},
        fault=values[FAULT],
    )


def refs_of(value: Any) -> Ref | tuple[Ref, ...] | None:
    if isinstance(value, list):
        return tuple(ref or Ref() for ref in map(ref_of, value))
    return ref_of(value)


def ref_of(value: Any) -> Ref | None:
    """The file of a cell: a struct, bytes, or a path; None for null, and for a struct of nulls."""
    match value:
        case None:
            return None
        case bytes():
            return Ref(bytes=value)
        case str():
            return Ref(path=value)
    if value.get("bytes") is None and value.get("path") is None:
        return None
    offset = value.get("offset")
    span = None if offset is None else (offset, value["size"])
    return Ref(path=value.get("path"), bytes=value.get("bytes"), span=span)
