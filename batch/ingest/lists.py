"""Lists of a source's rows: Parquet below an output's `_run/manifest/`, which a run maps over.

A list is written once and never changes. A source that has grown gets a further list of what is
new; one of which something was listed that has changed since, or gone, is refused.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import OutputError
from batch.storage import Storage
from schemas.ingest import LISTS, Found

logger = logging.getLogger(__name__)

ENTRY, STAMP, FAULT, CAPTION = "_entry", "_stamp", "_fault", "_caption"
FILE = pa.struct([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
OURS = {
    ENTRY: pa.string(),  # what was listed: a file, a row of a table, a tar
    STAMP: pa.string(),  # by which a change of it shows
    FAULT: pa.string(),  # why a row cannot be used, where that is known already
    "key": pa.string(),
    "prompt": pa.string(),
    CAPTION: FILE,  # where the caption is, unless it is in `prompt`
}
GROUP_ROWS = 2**14
SHOWN = 5

Rows = Sequence[Mapping[str, Any]]


class Lister(Protocol):
    """Knows one kind of source."""

    found: Found

    def entries(self) -> Mapping[str, str]:
        """What there is, in order, each with its stamp; cheap."""

    def rows(self, names: Sequence[str]) -> Rows:
        """The rows of these entries, in their order, by the columns of a list."""

    def fields(self) -> list[pa.Field]:
        """Columns of files, and those to carry along."""


@dataclass(frozen=True)
class Lists:
    """The lists that an output has."""

    storage: Storage
    names: tuple[str, ...]
    known: Mapping[str, str]
    fields: Mapping[str, pa.Field] = field(default_factory=dict)

    def missing(self, lister: Lister) -> list[str]:
        """Entries that no list has; OutputError for one that changed or went since it was listed,
        naming some of them."""
        there = lister.entries()
        gone = [name for name in self.known if name not in there]
        other = [name for name, stamp in self.known.items() if there.get(name, stamp) != stamp]
        for names, what in ((gone, "is there no more"), (other, "changed since")):
            if names:
                told = ", ".join(names[:SHOWN]) + (
                    f" and {len(names) - SHOWN} more" if names[SHOWN:] else ""
                )
                raise OutputError(
                    f"{told}: {what}, and {self.storage.uri} was planned from it. Put it back, or "
                    "take another output"
                )
        return [name for name in there if name not in self.known]

    def add(self, lister: Lister, names: Sequence[str]) -> bool:
        """Write one more list; False if another run was first, so that all has to be looked at
        again."""
        fields = [self._as_before(one) for one in lister.fields()]
        schema = pa.schema([*(pa.field(n, kind) for n, kind in OURS.items()), *fields])
        rows = lister.rows(names)
        try:
            table = pa.Table.from_pylist(list(rows), schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise OutputError(
                f"the source does not fit what is in {self.storage.uri}: {error}"
            ) from None
        out = pa.BufferOutputStream()
        pq.write_table(table, out, compression="zstd", row_group_size=GROUP_ROWS)
        logger.info("listed", extra={"rows": table.num_rows, "entries": len(names)})
        return self.storage.create(f"{LISTS}/{len(self.names):05d}.parquet", out.getvalue())

    def _as_before(self, one: pa.Field) -> pa.Field:
        return self.fields.get(one.name, one)


def lists_of(storage: Storage) -> Lists:
    """What has been listed so far."""
    known: dict[str, str] = {}
    names = tuple(name for name in storage.names(LISTS) if name.endswith(".parquet"))
    fields: dict[str, pa.Field] = {}
    for name in names:
        with storage.open(f"{LISTS}/{name}") as file:
            parquet = pq.ParquetFile(file)
            fields = {one.name: one for one in parquet.schema_arrow if one.name not in OURS}
            table = parquet.read([ENTRY, STAMP])
        known.update(zip(table[ENTRY].to_pylist(), table[STAMP].to_pylist(), strict=True))
    return Lists(storage, names, known, fields)


def at(path: str, offset: int | None = None, size: int | None = None) -> dict[str, Any]:
    """Where a file is, as a list has it: a path, and of a tar's member its place in there."""
    return {"path": path, "offset": offset, "size": size}
