"""One dataset as a trainer asks it: which rows there are, what each is told, and all it has."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.errors import JobError
from batch.output import DATA
from batch.storage import Storage
from batch.targets.files import Bucket
from batch.training.columns import Reject
from flux_engine.encode import TextKey
from flux_engine.training.material import Material
from schemas.targets import METADATA


@dataclass(frozen=True)
class Captions:
    """How a dataset's captions are told: with a trigger word before those that do not have it, or
    now and then not."""

    trigger: str | None = None
    dropout: float = 0.0

    def told(self, caption: str, *, dropped: bool) -> str:
        if dropped:
            return ""
        if self.trigger is None or has_words(self.trigger, caption):
            return caption
        return f"{self.trigger}, {caption}" if caption else self.trigger


def has_words(words: str, caption: str) -> bool:
    """Whether they stand there whole: `owl` is no word of `a bowl`."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caption) is not None


class Source(Protocol):
    """What is asked of a dataset; rows by number, safe from several threads."""

    address: str
    kind: str  # of targets, or "pictures"

    def __len__(self) -> int: ...

    def buckets(self) -> dict[Bucket, np.ndarray]: ...

    def row_groups(self) -> np.ndarray: ...

    def wanted(self, captions: Captions) -> list[TextKey]:
        """Texts that rows may need and the dataset does not have."""

    def material(self, row: int, captions: Captions, *, dropped: bool) -> Material:
        """All that a row has, told so."""

    def longest(self) -> int:
        """Of the rows' captions, in T5 tokens."""

    def rejects(self) -> list[Reject]:
        """Rows that cannot be learned from, as far as headers tell; no bucket has them."""

    def passed_over(self) -> list[int]:
        """Rows that turned out, when they were asked for, not to be readable."""

    def pass_over(self, rows: Iterable[int]) -> None:
        """These turned out so elsewhere."""

    def stand_in(self, row: int) -> int:
        """The row that is given for this one; itself if it can be read."""

    def row_keys(self) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """Of each file, as `lineage` names it: the keys of its rows, null where they have none."""

    def lineage(self) -> dict[str, Any]:
        """Where it is, whose it is, and its files with their rows and digests."""


def digest_of(lineage: Mapping[str, Any]) -> str:
    """16 hex digits of a dataset's content: of its files and whose they are, not of its place."""
    told = {name: lineage[name] for name in ("kind", "identity", "files")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def is_targets(address: str) -> bool:
    """Whether a folder holds distillation targets: its first data file says so."""
    if address.endswith(".parquet") or any(mark in address for mark in "*?["):
        return False
    storage = Storage(address)
    names = [name for name in storage.names(DATA) if name.endswith(".parquet")]
    if not names:
        return False
    with storage.open(f"{DATA}/{names[0]}") as file:
        metadata = pq.read_metadata(file).metadata or {}
    return METADATA.encode() in metadata


def table_of(address: str) -> str:
    """Where the rows of a table are: of an output of ours below `data/`, or the address itself."""
    if address.endswith(".parquet") or any(mark in address for mark in "*?["):
        return address
    names = Storage(address).names(DATA)
    inside = any(name.endswith(".parquet") for name in names)
    return f"{address.rstrip('/')}/{DATA}" if inside else address


NUMBERS = {
    "embedded_guidance": (0.0, 1000.0),
    "min_timestep_boundary": (0.0, 1.0),
    "max_timestep_boundary": (0.0, 1.0),
    "noise_scale": (0.0, math.inf),
}
FIXED = {"rand_device": "cpu", "cfg_scale": 1}
WHOLE = re.compile(r"[+-]?\d{1,19}", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def inputs(names: Iterable[str], carried: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a row that an objective takes; nulls are what it does not say. JobError names
    row, column and value of what cannot be taken."""
    out: dict[str, Any] = {}
    for name in names:
        value = carried.get(name)
        if value is None:
            continue
        if name in FIXED:
            wanted = FIXED[name]
            if value != wanted and (isinstance(wanted, str) or number(value) != wanted):
                raise JobError(f"{where}: {name} is {value!r}; training takes {wanted!r} only")
            continue
        if (found := number(value)) is None:
            raise JobError(f"{where}: {name} is {value!r}, and a number is wanted")
        value = found
        if name in NUMBERS:
            low, high = NUMBERS[name]
            if not low <= value <= high:
                raise JobError(f"{where}: {name} is {value}; allowed are {low:g} to {high:g}")
            out[name] = float(value)
        else:
            least = 1 if name == "num_inference_steps" else 0
            if value != int(value) or not least <= value < 2**63:
                raise JobError(
                    f"{where}: {name} is {value}; allowed are integers from {least} on, below 2**63"
                )
            out[name] = int(value)
    low, high = (out.get(name, default) for name, default in BOUNDARIES.items())
    if low >= high:
        raise JobError(f"{where}: min_timestep_boundary {low} is not below the other, {high}")
    return out


def number(value: Any) -> int | float | None:
    """A number, or the one that a text is, as cells of a table are; None for anything else."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        text = value.strip()
        value = int(text) if WHOLE.fullmatch(text) else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


BOUNDARIES = {"min_timestep_boundary": 0.0, "max_timestep_boundary": 1.0}


def refuse_unusable(
    names: Iterable[str], needed: Iterable[str], values: Mapping[str, Any], where: str
) -> None:
    """JobError for a row that lacks what it is `needed` for, or whose values cannot be taken."""
    inputs(names, values, where)
    if lost := [name for name in needed if values.get(name) is None]:
        raise JobError(f"{where}: {', '.join(lost)}: there is no value, and the task needs one")
