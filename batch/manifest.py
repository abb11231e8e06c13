"""Rows in: the files of a manifest, their columns, and rows parsed one by one."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from batch.errors import ManifestError, StorageError
from batch.storage import S3, open_uri
from schemas.arrow import files_in
from schemas.base import SchemaError
from schemas.lora import LoraEntry, LoraRecord
from schemas.manifest import KeyedRow, PromptRow

logger = logging.getLogger(__name__)

STRINGS = ("prompt", "caption", "negative_prompt", "rand_device", "schedule")
PICTURES = ("input_image", "image")
GLOB = "*?["
PARQUET = ".parquet"
KEYS_READ = 2**16
LARGE_GROUP = 2**29  # bytes


@dataclass(frozen=True)
class ManifestFile:
    """One Parquet file; `name` is its path inside the manifest, `footer` a digest of its footer."""

    name: str
    path: str
    size: int
    rows: int
    footer: str
    schema: pa.Schema = field(compare=False, repr=False)
    group_bytes: int = 0  # of its largest row group, unpacked

    @property
    def files(self) -> tuple[str, ...]:
        """Columns of a training shard that hold its files."""
        return files_in(self.schema)

    @property
    def history(self) -> tuple[str, ...]:
        """Columns in which a dataset tells of LoRAs that it was made with: none are asked for."""
        names = self.schema.names
        return ("loras",) if "loras" in names and tells_of_loras(self.schema.field("loras")) else ()


@dataclass(frozen=True)
class Row:
    """One line of a manifest: parsed, or with the reason why it could not be."""

    number: int
    key: str
    values: Mapping[str, Any]
    parsed: KeyedRow | None
    fault: str | None


class Manifest:
    """The Parquet files behind a path, a folder or a glob, in the order of their names."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self.fs, self.base, paths = find_files(uri)
            self.files = tuple(self._open(path) for path in paths)
        except (OSError, StorageError) as error:
            raise ManifestError(f"manifest {uri}: cannot be read: {error}") from None

    @property
    def root(self) -> str:
        """The folder that names are relative to, as a path or URI."""
        scheme, has_one, rest = self.uri.partition("://")
        if not has_one:
            return self.base
        _, mark, options = rest.partition("?") if self.uri.startswith(S3) else (rest, "", "")
        return f"{scheme}://{self.base}{mark}{options}"

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def _open(self, path: str) -> ManifestFile:
        try:
            with self.fs.open_input_file(path) as stream:
                size = stream.size()
                parquet = pq.ParquetFile(stream)
                footer = footer_digest(stream, size)
        except pa.ArrowInvalid as error:
            raise ManifestError(f"{path}: is not a readable Parquet file: {error}") from None
        name = str(PurePosixPath(path).relative_to(self.base))
        told, schema = parquet.metadata, parquet.schema_arrow
        groups = [told.row_group(i).total_byte_size for i in range(told.num_row_groups)]
        return ManifestFile(name, path, size, told.num_rows, footer, schema, max(groups, default=0))

    def check(
        self,
        passthrough: tuple[str, ...],
        row: type[KeyedRow] = PromptRow,
        lineage: Set[str] = frozenset(),
    ) -> None:
        """ManifestError for the first file with a column that is unknown, missing or mistyped, or
        if there is no row at all. Columns of `lineage` may be there and mean nothing."""
        if not self.rows:
            raise ManifestError(f"manifest {self.uri}: has no rows")
        for file in self.files:
            check_columns(file, passthrough, row, lineage | {*file.files})
        self.check_files(passthrough)

    def check_files(self, passthrough: tuple[str, ...]) -> None:
        """ManifestError for columns to carry along that are of two types; a warning of row groups
        that are large."""
        for file in self.files:
            if file.group_bytes > LARGE_GROUP:
                logger.warning(
                    "each worker holds a row group: write the file with a smaller row_group_size",
                    extra={"file": file.path, "MiB": file.group_bytes >> 20},
                )
        for name in passthrough:
            first, *others = [(file, file.schema.field(name).type) for file in self.files]
            for file, kind in others:
                if kind != first[1]:
                    raise ManifestError(
                        f"{file.path}: column {name!r} is {kind}, and in {first[0].path} it is "
                        f"{first[1]}"
                    )

    def passthrough_fields(self, names: tuple[str, ...]) -> list[pa.Field]:
        return [self.files[0].schema.field(name) for name in names]

    def keys(self, file: ManifestFile) -> Iterator[pa.Array]:
        """The key column as strings, some thousand rows at a time; nothing if the file has none."""
        if "key" not in file.schema.names:
            return
        with self.fs.open_input_file(file.path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(KEYS_READ, columns=["key"]):
                yield batch["key"].cast(pa.string())


def footer_digest(stream: pa.NativeFile, size: int) -> str:
    """16 hex digits of what a Parquet file says of itself at its end."""
    stream.seek(size - 8)
    length = int.from_bytes(stream.read(4), "little")
    stream.seek(size - 8 - length)
    return hashlib.sha256(stream.read(length)).hexdigest()[:16]


def find_files(uri: str, suffix: str = PARQUET) -> tuple[fs.FileSystem, str, list[str]]:
    """File system, the folder that names are relative to, and the files' paths, sorted."""
    try:
        file_system, path = open_uri(uri)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"manifest {uri}: {error}") from None
    if any(mark in path for mark in GLOB):
        parts = PurePosixPath(path).parts
        depth = next(i for i, part in enumerate(parts) if any(mark in part for mark in GLOB))
        base = str(PurePosixPath(*parts[:depth]))
        found = [p for p in files_below(file_system, base, suffix) if fnmatch(p, path)]
    else:
        kind = file_system.get_file_info(path).type
        if kind == fs.FileType.NotFound:
            raise ManifestError(f"manifest {uri}: there is no such file or folder")
        if kind == fs.FileType.File:
            return file_system, str(PurePosixPath(path).parent), [path]
        base, found = path, files_below(file_system, path, suffix)
    if not found:
        there = files_below(file_system, base, suffix)
        what = "Parquet" if suffix == PARQUET else suffix
        listing = ", ".join(there[:20]) or "none"
        raise ManifestError(
            f"manifest {uri}: no {what} file matches; in {base} there are: {listing}"
        )
    return file_system, base, found


def files_below(file_system: fs.FileSystem, folder: str, suffix: str) -> list[str]:
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    infos = file_system.get_file_info(selector)
    paths = (info.path for info in infos if info.type == fs.FileType.File)
    return sorted(path for path in paths if path.endswith(suffix))


def check_columns(
    file: ManifestFile,
    passthrough: tuple[str, ...],
    row: type[KeyedRow],
    lineage: Set[str],
) -> None:
    names = file.schema.names
    known = [*row.model_fields, *passthrough]
    for name in names:
        if name not in known and name not in lineage:
            near = get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}? " if near else ""
            if name.startswith("__index_level_"):
                hint = "pandas wrote its index: use to_parquet(..., index=False). "
            raise ManifestError(
                f"{file.path}: column {name!r} is not known. {hint}A column to carry along is "
                f"declared under passthrough; known are {', '.join(known)}"
            )
    for name in ("prompt", *passthrough):
        if name not in names and not (name == "prompt" and "caption" in {*known} & {*names}):
            raise ManifestError(f"{file.path}: has no column {name!r}; it has {', '.join(names)}")
    passed_over = {*file.history} & lineage
    for name in row.model_fields:
        if name in passed_over:
            continue
        if name in names and (allowed := misfit(name, file.schema.field(name).type)):
            found = file.schema.field(name).type
            raise ManifestError(f"{file.path}: column {name!r} is {found}; allowed is {allowed}")


def tells_of_loras(field: pa.Field) -> bool:
    """Whether a column holds lists of records, as our datasets have them."""
    kind = field.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    return pa.types.is_struct(inner) and {f.name for f in inner} == {*LoraRecord.model_fields}


def misfit(name: str, kind: pa.DataType) -> str | None:
    """What a column's type should have been, or None if it fits."""
    types = pa.types
    if types.is_null(kind):
        return None
    if types.is_dictionary(kind):
        kind = kind.value_type
    string = types.is_string(kind) or types.is_large_string(kind)
    if name in STRINGS:
        return None if string else "string"
    if name == "key":
        return None if string or types.is_integer(kind) else "string or integer"
    if name == "tiled":
        return None if types.is_boolean(kind) else "boolean"
    if name == "loras":
        inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
        listed = inner is not kind
        plain = types.is_string(inner) or types.is_large_string(inner) or types.is_null(inner)
        struct = types.is_struct(inner) and {f.name for f in inner} <= {*LoraEntry.model_fields}
        return None if listed and (plain or struct) else "a list of struct<path, scale, …>"
    if name in PICTURES:
        binary = types.is_binary(kind) or types.is_large_binary(kind)
        struct = types.is_struct(kind) and {f.name for f in kind} <= {"bytes", "path"}
        return None if string or binary or struct else "binary, string or struct<bytes, path>"
    return None if types.is_integer(kind) or types.is_floating(kind) else "a number"


class RowReader:
    """Rows by file and number; keeps the row group it read last, since shards follow each other."""

    def __init__(self, file_system: fs.FileSystem, row: type[KeyedRow] = PromptRow) -> None:
        self.fs, self.row = file_system, row
        self._last: tuple[str, int, pa.Table] | None = None

    def read(self, file: ManifestFile, first: int, count: int) -> Iterator[Row]:
        """Rows `first` … `first + count − 1` of one file; a faulty one comes with its fault.
        ManifestError if the file is not the one that was planned."""
        with self.fs.open_input_file(file.path) as stream:
            size = stream.size()
            if size != file.size or footer_digest(stream, size) != file.footer:
                raise ManifestError(f"{file.path}: changed while the run was at it")
            tables = list(self._tables(file.path, pq.ParquetFile(stream), first, count))
        number = first
        for table in tables:
            for values in table.drop_columns(list(file.history)).to_pylist():
                yield parse_row(file.name, number, values, self.row)
                number += 1

    def _tables(
        self, path: str, parquet: pq.ParquetFile, first: int, count: int
    ) -> Iterator[pa.Table]:
        """The parts of the row groups that hold these rows."""
        begin = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            low, high = max(first, begin), min(first + count, begin + rows)
            if low < high:
                if self._last is None or self._last[:2] != (path, group):
                    self._last = path, group, parquet.read_row_group(group)
                yield self._last[2].slice(low - begin, high - low)
            begin += rows


def parse_row(
    name: str, number: int, values: Mapping[str, Any], row: type[KeyedRow] = PromptRow
) -> Row:
    """One line of the file `name`."""
    columns = row.model_fields
    known = {k: picture(k, v) for k, v in values.items() if k in columns and v is not None}
    if "key" in known:
        known["key"] = str(known["key"])
    key = known.get("key") or content_digest(name, number, values)
    parsed, fault = None, None
    try:
        parsed = row.parse(known)
    except SchemaError as error:
        fault = "; ".join(str(error).splitlines())
    return Row(number, key, values, parsed, fault)


def picture(name: str, value: Any) -> Any:
    """A picture column's value as the schema has it: bytes and path."""
    if name not in PICTURES or isinstance(value, dict):
        return value
    return {"bytes": value} if isinstance(value, bytes) else {"path": value}


def content_digest(name: str, number: int, values: Mapping[str, Any]) -> str:
    """A key for a row without one: where it stands and what it says."""

    def plain(value: Any) -> Any:
        return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)

    content = json.dumps([name, number, values], sort_keys=True, default=plain)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
