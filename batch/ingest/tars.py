"""WebDataset tars: each sample's words, and its pictures by their places in the tar, so that they
are read alone."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from batch.errors import CaptionError, ManifestError
from batch.ingest.folder import PICTURES
from batch.ingest.lists import ENTRY, FAULT, FILE, STAMP, Rows, at
from batch.manifest import find_files
from schemas.ingest import Found, WebDatasetSource

BUFFER = 2**16
WORDS = ("txt", "json")
JSON = "json"  # the column in which a sample's JSON is carried along

LARGEST_TEXT = 2**20  # bytes of a caption or of JSON

Sample = dict[str, Any]  # its members by what follows the first dot: their places, or words


class TarLister:
    """Entries are tars, known again by their size; of a known one nothing is read."""

    def __init__(self, source: WebDatasetSource) -> None:
        self.source = source
        self.found = Found(carried=(JSON,))
        self.keys = tuple(key for key in source.data_file_keys if key != "image")
        if JSON in self.keys:
            raise ManifestError(f"source.data_file_keys: {JSON} is the column of a sample's JSON")
        try:
            self.fs, self.base, self.paths = find_files(source.path, ".tar")
        except OSError as error:
            raise ManifestError(f"source {source.path}: cannot be read: {error}") from None

    def entries(self) -> Mapping[str, str]:
        infos = self.fs.get_file_info(self.paths)
        return {self._name(info.path): str(info.size) for info in infos}

    def _name(self, path: str) -> str:
        return str(PurePosixPath(path).relative_to(self.base))

    def rows(self, names: Sequence[str]) -> Rows:
        stamps = self.entries()
        paths = {self._name(path): path for path in self.paths}
        return [
            {ENTRY: name, STAMP: stamps[name]} | row
            for name in names
            for row in self._samples(name, paths[name])
        ]

    def _samples(self, name: str, path: str) -> Iterator[dict[str, Any]]:
        stem = name.removesuffix(".tar")
        for key, members in self._members(name, path):
            yield {"key": f"{stem}/{key}"} | self._row(f"{name}: {key}", members)

    def _members(self, name: str, path: str) -> Iterator[tuple[str, Sample]]:
        """Samples: members that follow each other and share a name up to its first dot."""
        key, members = "", Sample()
        try:
            with (
                self.fs.open_input_file(path) as stream,
                io.BufferedReader(stream, BUFFER) as file,
                tarfile.open(fileobj=file, mode="r:") as tar,
            ):
                for member in tar:
                    base, _, ending = member.name.rpartition("/")[2].partition(".")
                    if not member.isfile() or not base:
                        continue
                    mine = str(PurePosixPath(member.name).with_name(base))
                    if mine != key and members:
                        yield key, members
                        members = {}
                    key = mine
                    if ending in members:
                        raise ManifestError(f"{name}: {key} has two members .{ending}")
                    members[ending] = at(name, member.offset_data, member.size)
                    if ending in WORDS and ending not in self.source.ignore:
                        found = tar.extractfile(member)
                        assert found is not None
                        members[ending] = found.read(LARGEST_TEXT + 1)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ManifestError(f"{path}: is no whole tar: {error}") from None
        if members:
            yield key, members

    def _row(self, where: str, members: Sample) -> dict[str, Any]:
        """A sample's columns; a member for which there is none is a ManifestError."""
        row: dict[str, Any] = self._words(members)
        for ending, place in members.items():
            stem, _, kind = f".{ending}".lower().rpartition(".")
            column = stem.removeprefix(".")
            if ending in self.source.ignore:
                continue
            if ending in WORDS:
                continue
            if f".{kind}" in PICTURES and not column:
                if "image" in row:
                    row[FAULT] = "has several pictures"
                row["image"] = place
            elif f".{kind}" in PICTURES and column in self.keys:
                row[column] = place
            else:
                raise ManifestError(
                    f"{where} has a member .{ending}, which is neither picture, .txt nor .json; "
                    "source.data_file_keys names further pictures, source.ignore what is left aside"
                )
        if "image" not in row:
            row[FAULT] = "has no picture"
        return row

    def _words(self, members: Sample) -> dict[str, Any]:
        """A sample's caption, and its JSON as text."""
        told = {name: members[name] for name in WORDS if isinstance(members.get(name), bytes)}
        try:
            return words_of(told, self.source.caption)
        except CaptionError as error:
            return {FAULT: str(error)}

    def fields(self) -> list[pa.Field]:
        files = [pa.field(name, FILE) for name in ("image", *self.keys)]
        return [*files, pa.field(JSON, pa.string())]


def words_of(told: Mapping[str, bytes], caption: str) -> dict[str, str | None]:
    """The columns of a sample's words, of which `caption` names the one in the JSON; CaptionError
    for those that cannot be read."""
    try:
        words = {name: data.decode("utf-8-sig") for name, data in told.items()}
        values = json.loads(words[JSON]) if JSON in words else {}
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"its words cannot be read: {error}") from None
    if any(len(data) > LARGEST_TEXT for data in told.values()):
        raise CaptionError(f"its words have more than {LARGEST_TEXT} bytes")
    if not isinstance(values, dict):
        raise CaptionError("its JSON is no mapping of names to values")
    prompt = words.get("txt", values.get(caption))
    if not isinstance(prompt, str | None):
        raise CaptionError(f"{caption} in its JSON is {str(prompt)[:80]!r}, no text")
    return {"prompt": prompt, JSON: words.get(JSON)}
