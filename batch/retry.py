"""Rejected rows tried again: a shard of their own beside the one that rejected them.

`<shard>-retry1` holds what became of the rows that `<shard>` rejected, `-retry2` of those that
were rejected again. The rejects that count are those of the last one that is published.
"""

import dataclasses
import re
from collections.abc import Iterable

from batch.shards import Shard

RETRY = re.compile(r"(?P<base>.+-[0-9a-f]{16})(?:-retry(?P<turn>\d+))?")
FINAL = ("DuplicateKey", "SchemaError")  # the manifest decides these, and it does not change


def turn_of(name: str) -> tuple[str, int]:
    """The planned shard that a shard belongs to, and how often its rejects were tried again."""
    told = RETRY.fullmatch(name)
    if told is None:
        return name, 0
    return told["base"], int(told["turn"] or 0)


def previous(name: str) -> str | None:
    """The shard whose rejects this one tries again, if it is one that does."""
    base, turn = turn_of(name)
    if turn == 0:
        return None
    return base if turn == 1 else f"{base}-retry{turn - 1}"


def turns(names: Iterable[str]) -> dict[str, list[str]]:
    """Published shards by the planned one that they belong to, first to last."""
    out: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        base, turn = turn_of(name)
        out.setdefault(base, []).append((turn, name))
    return {base: [name for _, name in sorted(found)] for base, found in out.items()}


def retry_of(shard: Shard, last: str, rejects: Iterable[tuple[int, int, str]]) -> Shard | None:
    """The shard that tries again what `last` rejected, given as (row, sample, error class); None
    if trying again would change nothing."""
    again = tuple((row, sample) for row, sample, error in rejects if error not in FINAL)
    if not again:
        return None
    base, turn = turn_of(last)
    rows = {row for row, _ in again}
    texts = tuple(pair for pair in shard.texts if pair[0] in rows)
    return dataclasses.replace(shard, name=f"{base}-retry{turn + 1}", only=again, texts=texts)
