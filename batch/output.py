"""The output folder: what may already be there, and what a run writes beside the data."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import OutputError
from batch.manifest import ManifestFile
from batch.shards import digest
from batch.storage import Storage

DATA, REJECTED, RUN = "data", "rejected", "_run"
SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


class Output:
    """One dataset in one folder, made by one recipe from the files of one manifest."""

    def __init__(self, uri: str, kind: str) -> None:
        try:
            self.storage = Storage(uri)
        except pa.ArrowInvalid as error:
            raise OutputError(f"output {uri}: {error}") from None
        self.suffix = SUFFIX[kind]

    def data(self, shard: str) -> str:
        return f"{DATA}/{shard}{self.suffix}"

    def rejected(self, shard: str) -> str:
        return f"{REJECTED}/{shard}.parquet"

    def finished(self) -> set[str]:
        """Names of the shards that are done: the data file is the marker."""
        names = self.storage.names(DATA)
        return {name.removesuffix(self.suffix) for name in names if name.endswith(self.suffix)}

    def rejects(self, shards: Iterable[str]) -> int:
        """How many rejected records stand beside these shards."""
        wanted = set(shards)
        total = 0
        for name in self.storage.names(REJECTED):
            if name.removesuffix(".parquet") in wanted:
                with self.storage.open(f"{REJECTED}/{name}") as file:
                    total += pq.read_metadata(file).num_rows
        return total

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe, or refuse, naming every field that differs from the one written."""
        name = f"{RUN}/recipe.json"
        try:
            if self.storage.create(name, to_json(recipe)):
                return
        except OSError as error:
            raise OutputError(f"output {self.storage.uri}: cannot be written: {error}") from None
        there = json.loads(self.storage.read(name))
        here = json.loads(to_json(recipe))
        if there != here:
            fields = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
            told = "; ".join(f"{k} was {there.get(k)!r} and is {here.get(k)!r}" for k in fields)
            raise OutputError(
                f"{self.storage.uri}: was made by another recipe: {told}. Take another output, or "
                "the old values"
            )

    def enrol(self, files: Iterable[ManifestFile]) -> None:
        """Write down each manifest file once; refuse one that changed or went since then."""
        known = set(self.storage.names(f"{RUN}/plan"))
        files = list(files)
        for base in sorted(known - {f"{digest(file.name)}.json" for file in files}):
            gone = json.loads(self.storage.read(f"{RUN}/plan/{base}"))["name"]
            raise OutputError(
                f"{gone}: {self.storage.uri} was planned from it, and the manifest has it no more. "
                "Put it back, or take another output"
            )
        for file in files:
            entry = {"name": file.name, "size": file.size, "rows": file.rows, "footer": file.footer}
            base = f"{digest(file.name)}.json"
            name = f"{RUN}/plan/{base}"
            if base not in known and self.storage.create(name, to_json(entry)):
                continue
            there = json.loads(self.storage.read(name))
            if there != entry:
                raise OutputError(
                    f"{file.path}: changed since {self.storage.uri} was planned from it (it had "
                    f"{there['rows']} rows in {there['size']} bytes and has {file.rows} in "
                    f"{file.size}). New rows belong in a new file"
                )

    def identify(self, fingerprint: Mapping[str, Any]) -> None:
        """Write the engine's fingerprint, or refuse an engine with other weights."""
        name = f"{RUN}/fingerprint.json"
        if self.storage.create(name, to_json(fingerprint)):
            return
        there = json.loads(self.storage.read(name))["weights"]
        here = fingerprint["weights"]
        if there != here:
            files = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
            raise OutputError(
                f"{self.storage.uri}: was made by other weights: {', '.join(files)} changed"
            )
