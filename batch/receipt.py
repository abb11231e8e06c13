"""What a worker says of a shard's files before it publishes them: counts and sums.

Receipts lie in `_run/receipts/`, and their counts are in their names, so that one listing tells
what a dataset holds. Beside each lie the rejects that go with it. Two runs that make one shard at
once leave a receipt each if their bytes differ (another machine's rounding, say); the one with the
sum of the published file counts.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

RECEIPTS = "_run/receipts"
NAME = re.compile(
    r"(?P<shard>[^.]+)\.(?P<done>\d+)\.(?P<rejected>\d+)\.(?P<sum>[0-9a-f]{16})"
    r"(\.[0-9a-f]{16})?\.json"
)
DIGITS = 16  # of a sum, in a name


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One shard as somebody made it. Sums are SHA-256 in hex; a shard may have no rejects file."""

    shard: str
    done: int
    rejected: int
    data_sum: str
    data_bytes: int
    rejects_sum: str | None
    beside: dict[str, str] = field(default_factory=dict)  # sums of other files of the shard

    @property
    def name(self) -> str:
        return f"{self._stem}.json"

    @property
    def rejects(self) -> str:
        """The name of the copy of its rejects."""
        return f"{self._stem}.parquet"

    @property
    def _stem(self) -> str:
        stem = f"{self.shard}.{self.done}.{self.rejected}.{self.data_sum[:DIGITS]}"
        return f"{stem}.{self.rejects_sum[:DIGITS]}" if self.rejects_sum else stem

    def as_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Receipt":
        return cls(**json.loads(data))


@dataclass(frozen=True)
class Counted:
    """What the name of a receipt says."""

    name: str
    done: int
    rejected: int
    sum: str  # the first digits of the data's

    @property
    def rejects(self) -> str:
        return f"{self.name.removesuffix('.json')}.parquet"


def by_shard(names: Iterable[str]) -> dict[str, list[Counted]]:
    """Receipts of each shard; more than one where its makers differed."""
    out: dict[str, list[Counted]] = {}
    for name in names:
        if told := NAME.fullmatch(name):
            counted = Counted(name, int(told["done"]), int(told["rejected"]), told["sum"])
            out.setdefault(told["shard"], []).append(counted)
    return out


def sum_of(file: Any) -> str:
    """SHA-256 of an open file, in hex."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
