"""Batches of rows of one size: which rows make up the batch of a step.

That is a function of (seed, step) and of the dataset alone, so that a resumed run, or one on more
or fewer ranks, sees the same batches. Within an epoch no row comes twice. Rows that fill no batch
are left to the next epoch, which leaves others.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from batch.errors import TargetsError
from batch.targets.dataset import TargetRow
from batch.targets.files import Bucket
from schemas.records import TargetRecord

Stacked = Tensor | tuple[Tensor | None, ...]


class Bucketed(Protocol):
    """What is asked of a dataset."""

    def buckets(self) -> dict[Bucket, np.ndarray]: ...

    def row_groups(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Batch:
    """The rows of one step, by slot."""

    step: int
    epoch: int
    bucket: Bucket
    rows: tuple[int, ...]


class BucketBatches:
    """Endless; a DataLoader takes it as its `batch_sampler`."""

    def __init__(
        self,
        dataset: Bucketed,
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        window: int | None = None,
        drop_small: bool = False,
    ) -> None:
        """`batch_size` is that of all ranks together; a rank iterates over its slots of each batch,
        from step `start` on. With `window`, rows are only mixed with those of so many row groups,
        which a cache can hold. A bucket that fills no batch is a TargetsError, unless
        `drop_small`."""
        if batch_size < 1 or batch_size % world or not 0 <= rank < world:
            raise TargetsError(
                f"batch_size {batch_size} for rank {rank} of {world}: each rank needs the same "
                "number of slots, and at least one"
            )
        self.batch_size, self.seed, self.start = batch_size, seed, start
        self.rank, self.world, self.window = rank, world, window
        buckets = dataset.buckets()
        small = {bucket: len(rows) for bucket, rows in buckets.items() if len(rows) < batch_size}
        if small and (not drop_small or len(small) == len(buckets)):
            told = ", ".join(f"{h}x{w} has {count}" for (h, w), count in small.items())
            raise TargetsError(f"buckets with fewer than {batch_size} rows: {told}")
        self.buckets = {b: rows for b, rows in buckets.items() if b not in small}
        self._groups = dataset.row_groups()
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    @property
    def steps_per_epoch(self) -> int:
        return sum(len(rows) // self.batch_size for rows in self.buckets.values())

    def at(self, step: int) -> Batch:
        """The batch of a step, all slots of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return Batch(step, epoch, *self._epoch(epoch)[place])

    def left(self, epoch: int) -> tuple[int, ...]:
        """Rows that fill no batch in an epoch; all of them are in the next one."""
        return tuple(sorted(n for b in self.buckets for n in self._parted(epoch, b)[1].tolist()))

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield list(self.at(step).rows[self.rank :: self.world])
            step += 1

    def _parted(self, epoch: int, bucket: Bucket) -> tuple[np.ndarray, np.ndarray]:
        """A bucket's rows that an epoch uses, and those that it leaves.

        The left ones move on along one fixed order, so that two epochs in a row never leave the
        same row.
        """
        rows = self.buckets[bucket]
        fixed = rows[np.argsort(keys(rows, self.seed, "left", *bucket), kind="stable")]
        count = len(rows) % self.batch_size
        turned = np.roll(fixed, -(epoch * count) % len(rows))
        return np.sort(turned[count:]), turned[:count]

    def _shuffled(self, epoch: int) -> list[tuple[Bucket, tuple[int, ...]]]:
        """All batches of an epoch, in its order."""
        waiting: dict[Bucket, Iterator[np.ndarray]] = {}
        turns: list[Bucket] = []
        for bucket in self.buckets:
            rows = self._order(self._parted(epoch, bucket)[0], epoch, bucket)
            batches = rows.reshape(-1, self.batch_size)
            waiting[bucket] = iter(batches)
            turns += [bucket] * len(batches)
        order = np.argsort(keys(np.arange(len(turns)), self.seed, "turns", epoch), kind="stable")
        drawn = [turns[place] for place in order.tolist()]
        return [(bucket, tuple(next(waiting[bucket]).tolist())) for bucket in drawn]

    def _order(self, rows: np.ndarray, epoch: int, bucket: Bucket) -> np.ndarray:
        mixed = keys(rows, self.seed, "rows", epoch, *bucket)
        if self.window is None:
            return rows[np.argsort(mixed, kind="stable")]
        groups, which = np.unique(self._groups[rows], return_inverse=True)
        drawn = np.argsort(keys(groups, self.seed, "groups", epoch, *bucket), kind="stable")
        place = np.empty(len(groups), np.int64)
        place[drawn] = np.arange(len(groups)) // self.window
        return rows[np.lexsort((mixed, place[which]))]


def keys(values: np.ndarray, *origin: int | str) -> np.ndarray:
    """64 bits for each value, which depend on nothing but it and the origin.

    No library's generator: their streams change with their versions. The last steps are those of
    SplitMix64, whose constants these are.
    """
    digest = hashlib.blake2b(repr(origin).encode(), digest_size=8).digest()
    z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.frombuffer(digest, np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class TargetBatch:
    """Rows side by side: a tensor (B, …) where all have one of one shape and type, else a tuple
    with each row's, or None where no row has one.

    `sigmas` (B, K + 1) and `t` (B, M) are float32, of length 0 where the kind has none.
    """

    numbers: tuple[int, ...]
    records: tuple[TargetRecord, ...]
    tensors: Mapping[str, Stacked | None]
    noise: Stacked | None
    states: Stacked | None
    t5: Stacked | None
    clip: Stacked | None
    negative_t5: Stacked | None
    negative_clip: Stacked | None
    sigmas: Stacked | None
    t: Stacked | None
    carried: tuple[Mapping[str, Any], ...]


def collate(rows: Sequence[TargetRow]) -> TargetBatch:
    """The rows in their order; a DataLoader's `collate_fn`."""
    records = [row.record for row in rows]
    return TargetBatch(
        numbers=tuple(row.number for row in rows),
        records=tuple(records),
        tensors={name: stacked([row.tensors[name] for row in rows]) for name in rows[0].tensors},
        noise=stacked([row.noise for row in rows]),
        states=stacked([row.states for row in rows]),
        t5=stacked([row.text.t5 if row.text else None for row in rows]),
        clip=stacked([row.text.clip if row.text else None for row in rows]),
        negative_t5=stacked([row.negative.t5 if row.negative else None for row in rows]),
        negative_clip=stacked([row.negative.clip if row.negative else None for row in rows]),
        sigmas=stacked([torch.tensor(r.sigmas, dtype=torch.float32) for r in records]),
        t=stacked([torch.tensor(r.t, dtype=torch.float32) for r in records]),
        carried=tuple(row.carried for row in rows),
    )


def stacked(tensors: Sequence[Tensor | None]) -> Stacked | None:
    there = [tensor for tensor in tensors if tensor is not None]
    if len(there) == len(tensors) and len({(t.shape, t.dtype) for t in there}) == 1:
        return torch.stack(there)
    return tuple(tensors) if there else None
