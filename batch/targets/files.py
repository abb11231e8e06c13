"""What a dataset's folder holds: its files in order, whose they are, and where their rows lie.

Footers are read, no row is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import TargetsError
from batch.output import DATA
from batch.targets.card import MANIFEST
from batch.targets.identity import IdentityError, refuse_other
from batch.targets.layout import COLUMNS, tensor_names, triple
from schemas.targets import METADATA, NOISE, SOLVER, VERSION

Bucket = tuple[int, int]  # height and width


@dataclass(frozen=True)
class TargetFile:
    """A data file: the number of its first row in the dataset, and how many each row group has."""

    path: Path
    first: int
    groups: tuple[int, ...]
    bucket: Bucket

    @property
    def rows(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True)
class Inventory:
    """A dataset's files, those with rows, in the order of their names; what all of them share."""

    root: Path
    identity: Mapping[str, Any]
    files: tuple[TargetFile, ...]
    carried: tuple[str, ...]  # columns that came from the manifest

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def inventory(root: Path, *, partial: bool = False) -> Inventory:
    """TargetsError for what is no dataset, or not a whole one unless `partial` will do;
    IdentityError for files of different teachers, naming each field."""
    paths = sorted((root / DATA).glob("*.parquet"))
    if not paths:
        raise TargetsError(f"{root}: no target dataset: there is no {DATA}/*.parquet")
    manifest = manifest_of(root, paths, partial=partial)
    identity = known(identity_in(footer_of(paths[0]).metadata, paths[0]), str(paths[0]))
    files: list[TargetFile] = []
    carried: tuple[str, ...] | None = None
    first = 0
    for path in paths:
        footer = footer_of(path)
        refuse_other(identity_in(footer.metadata, path), identity, f"{path} and {paths[0].name}")
        names = footer.schema.to_arrow_schema().names
        here = carried_of(names, identity, path)
        if carried is not None and here != carried:
            raise TargetsError(f"{path}: has columns {here}, and other files {carried}")
        carried = here
        groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        if sum(groups):
            files.append(TargetFile(path, first, groups, bucket_of(footer, path)))
            first += sum(groups)
    if manifest is not None:
        refuse_other(identity, manifest["identity"], f"{root / MANIFEST} and its files")
        if manifest["rows"] != first:
            raise TargetsError(f"{root}: has {first} rows and {manifest['rows']} by its {MANIFEST}")
    return Inventory(root, identity, tuple(files), carried or ())


def manifest_of(root: Path, paths: Sequence[Path], *, partial: bool) -> dict[str, Any] | None:
    """The manifest, which names exactly the files that are there."""
    path = root / MANIFEST
    if partial:
        return None
    if not path.is_file():
        raise TargetsError(
            f"{root}: is not finished: it has no {MANIFEST} yet (partial=True reads what is there)"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise TargetsError(f"{path}: is not JSON: {error}") from None
    here = {f"{DATA}/{one.name}" for one in paths}
    told = {entry["file"] for entry in manifest["files"]}
    beside = {name for entry in manifest["files"] for name in entry["beside"]}
    lost = sorted(told - here) + sorted(name for name in beside if not (root / name).is_file())
    for names, what in ((lost, "are missing"), (sorted(here - told), "are not in it")):
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            raise TargetsError(f"{path}: of its files {shown} {what}")
    return manifest


def footer_of(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TargetsError(f"{path}: is no whole Parquet file: {error}") from None


def identity_in(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, Any]:
    """Who made a file, from its footer."""
    told = (metadata or {}).get(METADATA.encode())
    if told is None:
        raise IdentityError(f"{path}: is no file of targets: its footer has no {METADATA}")
    identity: dict[str, Any] = json.loads(told)
    return identity


def known(identity: dict[str, Any], where: str) -> dict[str, Any]:
    """IdentityError for a layout, a noise or a solver of which this reader knows nothing."""
    ours = {"version": VERSION, "noise": NOISE, "solver": SOLVER}
    told = {name: identity.get(name) for name in ours}
    refuse_other(told, ours, f"{where}, and this reader knows no other")
    return identity


def carried_of(names: Sequence[str], identity: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Columns that are none of ours; TargetsError if one of ours is missing."""
    ours = [*COLUMNS, *(c for name in tensor_names(identity["target"]) for c in triple(name))]
    if lost := [name for name in ours if name not in names]:
        raise TargetsError(f"{path}: is without the columns {', '.join(lost)}")
    return tuple(name for name in names if name not in ours)


def bucket_of(footer: pq.FileMetaData, path: Path) -> Bucket:
    """The size that all rows of a file have, from its statistics."""
    found = []
    for side in ("height", "width"):
        ends = set(ends_of(footer, side))
        if len(ends) != 1:
            raise TargetsError(f"{path}: its rows have {len(ends)} values of {side}, and need one")
        found.append(int(ends.pop()))
    return found[0], found[1]


def ends_of(footer: pq.FileMetaData, column: str) -> Iterator[Any]:
    """The least and the greatest value in each row group."""
    for i in range(footer.num_row_groups):
        group = footer.row_group(i)
        for j in range(group.num_columns):
            chunk = group.column(j)
            if chunk.path_in_schema == column and chunk.statistics is not None:
                yield chunk.statistics.min
                yield chunk.statistics.max
