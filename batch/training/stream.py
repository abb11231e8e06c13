"""Which rows a step sees, as a function of the seed, the step and the datasets alone.

A step has `per_step` micro-batches, numbered through the whole run. Micro-batch m belongs to one
dataset; datasets take turns by their shares, evenly. Its rows are those of the dataset's own next
batch, and whether a slot's caption is dropped is drawn for that slot. So a run may stop anywhere,
and go on with another number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch

from batch.errors import JobError
from batch.targets.batches import Batch, BucketBatches
from batch.targets.files import Bucket
from flux_engine.training.chance import chance


@dataclass(frozen=True)
class Share:
    """One dataset in the stream: its batches, how often it is repeated in an epoch, and how
    likely a caption is dropped."""

    name: str
    batches: BucketBatches
    repeat: int = 1
    dropout: float = 0.0

    @property
    def epoch(self) -> int:
        """Micro-batches in one epoch of it."""
        return self.batches.steps_per_epoch * self.repeat


@dataclass(frozen=True)
class Slot:
    """One sample: which row, and whether without its caption. `number` is its micro-batch's."""

    number: int
    slot: int
    row: int
    dropped: bool


@dataclass(frozen=True)
class Draft:
    """One micro-batch: whose rows, of which size, in the dataset's how many-th epoch."""

    number: int
    dataset: int
    epoch: int
    bucket: Bucket
    slots: tuple[Slot, ...]


class Stream:
    """Micro-batches by number, and the number of steps."""

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        seed: int,
        per_step: int,
        weights: Sequence[Fraction] | None = None,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> None:
        """Without `weights` sizes are the shares. An epoch is over when the first dataset is, with
        its repeats; without `steps` there are so many of them, begun steps counted whole."""
        if not shares:
            raise JobError("no datasets: nothing to learn from")
        self.shares, self.seed, self.per_step = tuple(shares), seed, per_step
        told = weights or [Fraction(share.epoch) for share in shares]
        total = sum(told, Fraction(0))
        self.weights = tuple(weight / total for weight in told)
        self.steps = steps or self._steps_for(epochs or 1)

    def _steps_for(self, epochs: int) -> int:
        """So many that the first dataset's micro-batches suffice."""
        return max(1, ceil(self.shares[0].epoch * epochs / self.weights[0] / self.per_step))

    def turn(self, number: int) -> tuple[int, int]:
        """Whose turn micro-batch `number` is, and the how many-th of that dataset it is."""
        left = Fraction(1)
        for dataset, weight in enumerate(self.weights[:-1]):
            share = weight / left
            before = ceil(number * share)
            if ceil((number + 1) * share) > before:
                return dataset, before
            number -= before
            left -= weight
        return len(self.weights) - 1, number

    def at(self, number: int) -> Draft:
        """A micro-batch."""
        dataset, turn = self.turn(number)
        share = self.shares[dataset]
        batch: Batch = share.batches.at(turn)
        slots = tuple(
            Slot(number, slot, row, self._dropped(share.dropout, number, slot))
            for slot, row in enumerate(batch.rows)
        )
        return Draft(number, dataset, batch.epoch, batch.bucket, slots)

    def step(self, step: int, rank: int = 0, world: int = 1) -> list[Draft]:
        """A rank's micro-batches of a step, in order."""
        first = step * self.per_step
        return [self.at(first + i) for i in range(rank, self.per_step, world)]

    def counts(self) -> list[int]:
        """Micro-batches that each dataset has in the whole run."""
        out = [0] * len(self.shares)
        left, number = Fraction(1), self.steps * self.per_step
        for dataset, weight in enumerate(self.weights[:-1]):
            out[dataset] = ceil(number * weight / left)
            number -= out[dataset]
            left -= weight
        out[-1] = number
        return out

    def _dropped(self, dropout: float, number: int, slot: int) -> bool:
        random = chance(self.seed, "caption", number, slot)
        return dropout > 0 and float(torch.rand((), generator=random)) < dropout
