"""The unit of work, retry and resume: some consecutive rows of one manifest file."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas.util import hash_array

from batch.manifest import Manifest, ManifestFile


@dataclass(frozen=True)
class Shard:
    """Rows `first` … `first + rows − 1` of `file`.

    `name` is unique to (file's name, size and footer; row range; recipe). `duplicates` says which
    rows repeat the key of an earlier row, and where that is. `only`: some pairs (row, sample) of
    these rows and no others, as in a shard that tries rejected ones again.
    """

    name: str
    file: ManifestFile
    first: int
    rows: int
    duplicates: tuple[tuple[int, str], ...] = ()
    only: tuple[tuple[int, int], ...] = ()

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

    Keys are compared as 64-bit hashes first, so that memory is 8 bytes a row.
    """
    columns = [manifest.keys(file) for file in manifest.files]
    hashes = [
        np.zeros(0, np.uint64) if c is None else hash_array(c.to_pandas().to_numpy(object))
        for c in columns
    ]
    values, counts = np.unique(
        np.concatenate(hashes or [np.zeros(0, np.uint64)]), return_counts=True
    )
    suspect = values[counts > 1]
    out: dict[int, dict[int, str]] = {}
    if not len(suspect):
        return out
    first: dict[str, str] = {}
    for index, (column, hashed) in enumerate(zip(columns, hashes, strict=True)):
        if column is None:
            continue
        for row in np.flatnonzero(np.isin(hashed, suspect)).tolist():
            key = column[row].as_py()
            if key is None:
                continue
            if key in first:
                out.setdefault(index, {})[row] = first[key]
            else:
                first[key] = f"{manifest.files[index].name}:{row}"
    return out


def count_rows(shards: Iterable[Shard]) -> int:
    return sum(shard.rows for shard in shards)
