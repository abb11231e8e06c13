"""The output folder: what may already be there, and what a run writes beside the data."""

import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import OutputError, StorageError
from batch.manifest import ManifestFile
from batch.receipt import RECEIPTS, Counted, Receipt, by_shard, sum_of
from batch.shards import digest
from batch.storage import Storage

DATA, REJECTED, RUN = "data", "rejected", "_run"
RECIPE, PLAN = f"{RUN}/recipe.json", f"{RUN}/plan"
Receipts = Mapping[str, list[Counted]]
SUFFIX = {"parquet": ".parquet", "webdataset": ".tar"}


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def entry_of(file: ManifestFile) -> dict[str, Any]:
    """What is written down of a manifest's file."""
    return {"name": file.name, "size": file.size, "rows": file.rows, "footer": file.footer}


def unseen(uri: str, hosts: str) -> str:
    """What to say of an output that lies on one machine's disk."""
    return (
        f"output {uri}: is not seen on {hosts}. With several nodes it must be in a folder that all "
        "of them share, or on object storage"
    )


class Output:
    """One dataset in one folder, made by one recipe from the files of one manifest."""

    def __init__(self, uri: str, kind: str) -> None:
        try:
            self.storage = Storage(uri)
        except (pa.ArrowInvalid, StorageError) as error:
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

    def receipts(self) -> Receipts:
        """All that there are, by shard."""
        return by_shard(self.storage.names(RECEIPTS))

    def counts(self, shards: Set[str], receipts: Receipts) -> dict[str, tuple[int, int]]:
        """Pictures and rejects of these finished shards."""
        return {
            shard: self._count(shard, receipts[shard])
            if shard in receipts
            else self._recount(shard)
            for shard in shards
        }

    def count(self, shard: str) -> tuple[int, int]:
        return self.counts({shard}, self.receipts())[shard]

    def _count(self, shard: str, receipts: list[Counted]) -> tuple[int, int]:
        told = self._standing(shard, receipts)
        return (told.done, told.rejected) if told else self._recount(shard)

    def _standing(self, shard: str, receipts: list[Counted]) -> Counted | None:
        """The receipt of what is published; the data is read where makers told different counts."""
        if len({(one.done, one.rejected) for one in receipts}) == 1:
            return receipts[0]
        return self._published(shard, receipts)

    def receipt(self, shard: str, receipts: list[Counted]) -> Receipt | None:
        """That of what is published; the data is read where several were left. None: nobody's."""
        if not receipts:
            return None
        told = receipts[0] if len(receipts) == 1 else self._published(shard, receipts)
        if told is None:
            return None
        return Receipt.from_json(self.storage.read(f"{RECEIPTS}/{told.name}"))

    def _published(self, shard: str, receipts: list[Counted]) -> Counted | None:
        with self.storage.open(self.data(shard)) as file:
            total = sum_of(file)
        return next((one for one in receipts if total.startswith(one.sum)), None)

    def show_rejects(self, shards: Iterable[str], receipts: Receipts) -> None:
        """Put the rejects of these finished shards where they belong, if who made them died before
        that."""
        there = set(self.storage.names(REJECTED))
        for shard in shards:
            mine = receipts.get(shard, [])
            if f"{shard}.parquet" in there or not any(one.rejected for one in mine):
                continue
            told = self._standing(shard, mine)
            if told and told.rejected:
                rejects = self.storage.read(f"{RECEIPTS}/{told.rejects}")
                self.storage.replace(self.rejected(shard), rejects)

    def _recount(self, shard: str) -> tuple[int, int]:
        """From the files themselves."""
        with self.storage.open(self.data(shard)) as file:
            if self.suffix == ".tar":
                with tarfile.open(fileobj=file) as tar:
                    done = len(tar.getnames()) // 2
            else:
                done = pq.read_metadata(file).num_rows
        if not self.storage.exists(self.rejected(shard)):
            return done, 0
        with self.storage.open(self.rejected(shard)) as file:
            return done, pq.read_metadata(file).num_rows

    def rejects(self, shard: str) -> list[dict[str, Any]]:
        """The rejected records of a shard."""
        if not self.storage.exists(self.rejected(shard)):
            return []
        with self.storage.open(self.rejected(shard)) as file:
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe, or refuse, naming every field that differs from the one written."""
        try:
            if self.storage.create(RECIPE, to_json(recipe)):
                return
        except (OSError, StorageError) as error:
            raise OutputError(f"output {self.storage.uri}: cannot be written: {error}") from None
        self._same_recipe(recipe)

    def check(self, recipe: Callable[[], Mapping[str, Any]], files: Iterable[ManifestFile]) -> None:
        """Refuse what `claim` and `enrol` would refuse, and write nothing."""
        try:
            self.check_recipe(recipe)
            self._unknown(files)
        except OSError as error:
            raise OutputError(f"output {self.storage.uri}: cannot be used: {error}") from None

    def check_recipe(self, recipe: Callable[[], Mapping[str, Any]]) -> None:
        """Refuse what `claim` would refuse, and write nothing.

        A recipe in which weights count by their content is dear: it is asked for only where there
        is one to compare it with.
        """
        if self.storage.exists(RECIPE):
            self._same_recipe(recipe())

    def _same_recipe(self, recipe: Mapping[str, Any]) -> None:
        there = json.loads(self.storage.read(RECIPE))
        here = json.loads(to_json(recipe))
        if there != here:
            fields = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
            told = "; ".join(f"{k} was {there.get(k)!r} and is {here.get(k)!r}" for k in fields)
            raise OutputError(
                f"{self.storage.uri}: was made by another recipe: {told}. Take another output, or "
                "the old values" + ("" if self.finished() else "; nothing is finished in it yet")
            )

    def enrol(self, files: Iterable[ManifestFile]) -> None:
        """Write down each manifest file once; refuse one that changed or went since then."""
        for name, file in self._unknown(files).items():
            if not self.storage.create(name, to_json(entry_of(file))):
                self._same_file(name, file)  # another run was faster

    def _unknown(self, files: Iterable[ManifestFile]) -> dict[str, ManifestFile]:
        """Files that are not written down yet, by where they are to be."""
        known = set(self.storage.names(PLAN))
        named = {f"{digest(file.name)}.json": file for file in files}
        for base in sorted(known - named.keys()):
            gone = json.loads(self.storage.read(f"{PLAN}/{base}"))["name"]
            raise OutputError(
                f"{gone}: {self.storage.uri} was planned from it, and the manifest has it no more. "
                "Put it back, or take another output"
            )
        for base in known:
            self._same_file(f"{PLAN}/{base}", named[base])
        return {f"{PLAN}/{base}": file for base, file in named.items() if base not in known}

    def _same_file(self, name: str, file: ManifestFile) -> None:
        there = json.loads(self.storage.read(name))
        if there != entry_of(file):
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
