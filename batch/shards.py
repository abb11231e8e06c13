"""The unit of work, retry and resume: some consecutive rows of one manifest file."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batch.manifest import Manifest, ManifestFile


@dataclass(frozen=True)
class Shard:
    """Rows `first` … `first + rows − 1` of `file`.

    `name` is unique to (file's name, size and footer; row range; recipe). `duplicates` says which
    rows repeat the key of an earlier row, and where that is. `only`: some pairs (row, sample) of
    these rows and no others, as in a shard that tries rejected ones again. Of distillation
    targets, `bucket` is the size that its rows share, `texts` are the rows with a new caption (0)
    or negative caption (1).
    """

    name: str
    file: ManifestFile
    first: int
    rows: int
    duplicates: tuple[tuple[int, str], ...] = ()
    only: tuple[tuple[int, int], ...] = ()
    bucket: str = ""
    texts: tuple[tuple[int, int], ...] = ()

    def holds(self, row: int) -> bool:
        """Whether a row of the file is one of this shard's."""
        return not self.only or any(number == row for number, _ in self.only)

    def pictures(self, samples: int) -> int:
        """How many are asked for, at so many samples a row."""
        return len(self.only) or self.rows * samples


def digest(value: Any) -> str:
    """16 hex digits that depend on nothing but the value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def plan(manifest: Manifest, rows_per_shard: int, recipe: Mapping[str, Any]) -> list[Shard]:
    """All shards of a manifest, in its order; a pure function of the arguments."""
    recipe_digest = digest(recipe)
    repeated = duplicates(manifest)
    shards = []
    for index, file in enumerate(manifest.files):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", file.name.removesuffix(".parquet"))[:60]
        for first in range(0, file.rows, rows_per_shard):
            rows = min(rows_per_shard, file.rows - first)
            identity = digest([file.name, file.size, file.footer, first, rows, recipe_digest])
            twice = repeated.get(index, {})
            mine = tuple((row, twice[row]) for row in range(first, first + rows) if row in twice)
            shards.append(Shard(f"{stem}-{first:08d}-{identity}", file, first, rows, mine))
    return shards


def duplicates(manifest: Manifest) -> dict[int, dict[int, str]]:
    """By file and row: rows whose key stands in an earlier row, with `file:row` of the first one.

    Keys are compared as 64-bit hashes first, so that memory is some 8 bytes a row; those that
    look alike are read again.
    """
    hashed = [hash_keys(keys) for file in manifest.files for keys in manifest.keys(file)]
    every = np.concatenate(hashed or [np.zeros(0, np.uint64)])
    del hashed
    every.sort()
    suspect = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    out: dict[int, dict[int, str]] = {}
    if not len(suspect):
        return out
    first: dict[str, str] = {}
    for index, file in enumerate(manifest.files):
        begin = 0
        for keys in manifest.keys(file):
            for place in np.flatnonzero(np.isin(hash_keys(keys), suspect)).tolist():
                key, row = keys[place].as_py(), begin + place
                if key is None:
                    continue
                if key in first:
                    out.setdefault(index, {})[row] = first[key]
                else:
                    first[key] = f"{file.name}:{row}"
            begin += len(keys)
    return out


def hash_keys(keys: pa.Array) -> np.ndarray:
    """64 bits of each."""
    from pandas.util import hash_array  # pandas takes its time to import, and only plans hash

    hashed: np.ndarray = hash_array(keys.to_numpy(zero_copy_only=False), categorize=False)
    return hashed


def count_rows(shards: Iterable[Shard]) -> int:
    return sum(len({row for row, _ in shard.only}) or shard.rows for shard in shards)
