"""A table that names files: CSV, a JSON list, or JSON lines."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, get_args, get_type_hints

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from batch.errors import ManifestError
from batch.ingest.lists import ENTRY, FAULT, FILE, OURS, STAMP, Rows, at
from batch.storage import open_uri
from schemas.ingest import Found, TableSource
from schemas.manifest import PromptRow
from schemas.records import TRAINING_COLUMNS

Line = dict[str, Any]

ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
NO = {int: "no whole number", float: "no number", bool: "neither true nor false"}
NUMBERS = {  # columns whose cells are numbers in every job, also where a table has only text
    name: kind
    for name, hint in get_type_hints(PromptRow).items()
    for kind in get_args(hint)
    if kind in ARROW
}


class TableLister:
    """Entries are the table's rows, by its name and their numbers."""

    def __init__(self, source: TableSource) -> None:
        self.source = source
        where = source.dataset_metadata_path
        self.name = PurePosixPath(where.partition("?")[0]).name
        self.lines = lines_of(where)
        self.textual = not self.name.lower().endswith((".json", ".jsonl"))
        names = list(dict.fromkeys(name for line in self.lines for name in line))
        self.keys = ("image", *(key for key in source.data_file_keys if key != "image"))
        for name in (*self.keys, *source.leave_out):
            if name not in names:
                raise ManifestError(f"{where}: has no column {name!r}; it has {', '.join(names)}")
        known = {*self.keys, "prompt", "key", *source.leave_out}
        carried = tuple(name for name in names if name not in known)
        if taken := [name for name in carried if name in OURS or name in TRAINING_COLUMNS]:
            raise ManifestError(
                f"{where}: column {taken[0]!r} is called as one of our own; source.leave_out names "
                "columns that are not taken along"
            )
        lists = {
            name
            for name in self.keys
            if name != "image" and any(isinstance(line.get(name), list) for line in self.lines)
        }
        self.found = Found(
            carried=carried, several=tuple(name for name in self.keys if name in lists)
        )

    def entries(self) -> Mapping[str, str]:
        return {f"{self.name}:{i}": stamp_of(line) for i, line in enumerate(self.lines)}

    def rows(self, names: Sequence[str]) -> Rows:
        stamps = self.entries()
        numbers = {name: i for i, name in enumerate(stamps)}
        return [self._row(name, stamps[name], self.lines[numbers[name]]) for name in names]

    def _row(self, entry: str, stamp: str, line: Line) -> Line:
        faults: list[str] = []
        key, prompt = line.get("key"), line.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            faults.append(f"prompt: {prompt!r} is no text")
        if key is not None and not isinstance(key, str | int):
            faults.append(f"key: {key!r} is neither text nor a number")
        row: Line = {
            ENTRY: entry,
            STAMP: stamp,
            "key": entry if key is None else str(key),
            "prompt": prompt if isinstance(prompt, str) else None,
        }
        for name in self.keys:
            row[name] = self._files(name, line.get(name), faults)
        row |= {name: self._value(name, line.get(name), faults) for name in self.found.carried}
        return row | {FAULT: "; ".join(faults) or None}

    def _files(self, name: str, value: Any, faults: list[str]) -> Any:
        """Where the files of a cell are."""
        several = name in self.found.several
        paths = value if isinstance(value, list) and several else [value]
        if value is None:
            return None
        if bad := [path for path in paths if not isinstance(path, str) or not path]:
            faults.append(f"{name}: {bad[0]!r} is no path")
            return None
        return [at(path) for path in paths] if several else at(paths[0])

    def _value(self, name: str, value: Any, faults: list[str]) -> Any:
        """A cell as its column has it."""
        if not self.textual or value is None or name not in NUMBERS:
            return value
        kind = NUMBERS[name]
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError:
            faults.append(f"{name}: {value!r} is {NO[kind]}")
            return None

    def fields(self) -> list[pa.Field]:
        several = self.found.several
        files = [pa.field(n, pa.list_(FILE) if n in several else FILE) for n in self.keys]
        return [*files, *(self._field(name) for name in self.found.carried)]

    def _field(self, name: str) -> pa.Field:
        if self.textual and name in NUMBERS:
            return pa.field(name, ARROW[NUMBERS[name]])
        try:
            kind = pa.array([line.get(name) for line in self.lines]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ManifestError(
                f"{self.source.dataset_metadata_path}: column {name!r} has values of several "
                f"types: {error}"
            ) from None
        return pa.field(name, pa.string() if pa.types.is_null(kind) else kind)


def lines_of(uri: str) -> list[Line]:
    """The table's rows; ManifestError for a file that is no table, naming its row."""
    text = text_of(uri)
    kind = PurePosixPath(uri.partition("?")[0]).suffix.lower()
    if kind == ".json":
        told = from_json(text, uri)
        if not isinstance(told, list):
            raise ManifestError(f"{uri}: is no list of rows")
        lines: list[Line] = told
    elif kind == ".jsonl":
        # not splitlines(): captions may have the other characters that it ends a line with
        numbered = enumerate(line.removesuffix("\r") for line in text.split("\n"))
        lines = [from_json(line, f"{uri}:{i}") for i, line in numbered if line.strip()]
    else:
        lines = from_csv(text, uri)
    for i, line in enumerate(lines):
        if not isinstance(line, dict):
            raise ManifestError(f"{uri}:{i}: {str(line)[:80]!r} is no row: names with values")
    if not lines:
        raise ManifestError(f"{uri}: has no rows")
    return lines


def text_of(uri: str) -> str:
    try:
        file_system, path = open_uri(uri)
        with file_system.open_input_file(path) as file:
            return bytes(file.read()).decode("utf-8-sig")
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"{uri}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{uri}: is not UTF-8: {error}") from None


def from_json(text: str, where: str) -> Any:
    def no_number(word: str) -> Any:
        raise ValueError(f"{word} is no value")

    try:
        return json.loads(text, parse_constant=no_number)
    except ValueError as error:
        raise ManifestError(f"{where}: is not JSON: {error}") from None


def from_csv(text: str, uri: str) -> list[Line]:
    """Cells are text as they stand; an empty one is null."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head, *rows = [row for row in reader if row]
    except (csv.Error, ValueError) as error:
        raise ManifestError(f"{uri}: is no CSV with a head: {error}") from None
    if len(set(head)) != len(head) or "" in head:
        raise ManifestError(f"{uri}: columns are unnamed or named twice: {head}")
    for i, row in enumerate(rows):
        if len(row) != len(head):
            raise ManifestError(f"{uri}:{i}: has {len(row)} cells, and the head {len(head)}")
    return [dict(zip(head, (cell or None for cell in row), strict=True)) for row in rows]


def stamp_of(line: Line) -> str:
    told = json.dumps(line, sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
