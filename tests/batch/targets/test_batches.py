"""Which rows make up the batch of a step, and rows side by side."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from batch.errors import TargetsError
from batch.targets.batches import BucketBatches, TargetBatch, collate, keys
from batch.targets.dataset import TargetDataset
from batch.targets.files import Bucket
from tests.batch.targets.made import Targets

WIDE, TALL = (32, 64), (64, 32)


class Numbers:
    """Rows of two sizes in turns of ten, in row groups of five."""

    def __init__(self, rows: int = 230) -> None:
        self.rows = np.arange(rows)

    def buckets(self) -> dict[Bucket, np.ndarray]:
        wide = self.rows // 10 % 2 == 0
        return {WIDE: self.rows[wide], TALL: self.rows[~wide]}

    def row_groups(self) -> np.ndarray:
        return self.rows // 5


def epoch_of(batches: BucketBatches, epoch: int) -> list[int]:
    steps = batches.steps_per_epoch
    return [
        n for step in range(epoch * steps, epoch * steps + steps) for n in batches.at(step).rows
    ]


def test_a_batch_has_rows_of_one_size() -> None:
    numbers = Numbers()
    batches = BucketBatches(numbers, 8, seed=1)
    sizes = numbers.buckets()
    for step in range(3 * batches.steps_per_epoch):
        batch = batches.at(step)
        assert len(batch.rows) == 8
        assert set(batch.rows) <= set(sizes[batch.bucket].tolist())
        assert (batch.step, batch.epoch) == (step, step // batches.steps_per_epoch)


def test_an_epoch_uses_each_row_once_but_those_that_it_leaves() -> None:
    batches = BucketBatches(Numbers(), 8, seed=1)
    assert batches.steps_per_epoch == 120 // 8 + 110 // 8
    for epoch in range(40):
        used = epoch_of(batches, epoch)
        assert len(set(used)) == len(used)
        assert sorted([*used, *batches.left(epoch)]) == list(range(230))
        assert len(batches.left(epoch)) == 110 % 8
        assert not {*batches.left(epoch)} & {*batches.left(epoch + 1)}


def test_every_row_is_left_now_and_then() -> None:
    batches = BucketBatches(Numbers(), 8, seed=1)
    left = [n for epoch in range(110) for n in batches.left(epoch)]
    counts = np.bincount(left, minlength=230)
    assert set(counts[Numbers().buckets()[TALL]].tolist()) == {6}


def test_the_same_step_is_the_same_batch_whoever_asks() -> None:
    one, other = BucketBatches(Numbers(), 8, seed=1), BucketBatches(Numbers(), 8, seed=1)
    forth = [one.at(step) for step in range(100)]
    back = [other.at(step) for step in reversed(range(100))]
    assert forth == back[::-1]


def test_the_order_of_a_seed_is_written_down() -> None:
    batches = BucketBatches(Numbers(), 4, seed=7)
    assert batches.at(0).rows == PINNED[0]
    assert batches.at(1000).rows == PINNED[1]


PINNED = ((29, 182, 120, 86), (73, 52, 16, 219))


def test_seeds_and_epochs_differ() -> None:
    one, other = BucketBatches(Numbers(), 8, seed=1), BucketBatches(Numbers(), 8, seed=2)
    assert epoch_of(one, 0) != epoch_of(other, 0)
    assert epoch_of(one, 0) != epoch_of(one, 1)
    assert one.left(0) != other.left(0)


def test_going_on_from_a_step_is_going_on() -> None:
    whole = list(islice(BucketBatches(Numbers(), 8, seed=1), 90))
    rest = list(islice(BucketBatches(Numbers(), 8, seed=1, start=37), 53))
    assert whole[37:] == rest


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_each_batch_by_slot(world: int) -> None:
    ranks = [
        islice(BucketBatches(Numbers(), 8, seed=1, rank=rank, world=world), 50)
        for rank in range(world)
    ]
    batches = BucketBatches(Numbers(), 8, seed=1)
    for step, parts in enumerate(zip(*ranks, strict=True)):
        slots = [n for turn in zip(*parts, strict=True) for n in turn]
        assert tuple(slots) == batches.at(step).rows


def test_in_a_window_rows_mix_with_those_of_few_row_groups() -> None:
    numbers = Numbers()
    batches = BucketBatches(numbers, 8, seed=1, window=4)
    for epoch in range(2):
        used = epoch_of(batches, epoch)
        assert sorted([*used, *batches.left(epoch)]) == list(range(230))
        for bucket in (WIDE, TALL):
            mine = [n for n in used if n in set(numbers.buckets()[bucket].tolist())]
            for first in range(0, len(mine), 20):  # four groups of five rows, less what is left
                groups = {n // 5 for n in mine[first : first + 20]}
                assert len(groups) <= 8
    assert epoch_of(batches, 0) != epoch_of(batches, 1)


def test_buckets_that_fill_no_batch_are_named() -> None:
    with pytest.raises(TargetsError, match="fewer than 111 rows: 64x32 has 110"):
        BucketBatches(Numbers(), 111, seed=1)
    batches = BucketBatches(Numbers(), 111, seed=1, drop_small=True)
    assert {batches.at(step).bucket for step in range(5)} == {WIDE}
    with pytest.raises(TargetsError, match="32x64 has 120, 64x32 has 110"):
        BucketBatches(Numbers(), 121, seed=1, drop_small=True)


@pytest.mark.parametrize(("size", "rank", "world"), [(8, 0, 3), (0, 0, 1), (8, 2, 2), (8, -1, 2)])
def test_slots_that_ranks_cannot_share_are_refused(size: int, rank: int, world: int) -> None:
    with pytest.raises(TargetsError, match=f"batch_size {size} for rank {rank} of {world}"):
        BucketBatches(Numbers(), size, seed=1, rank=rank, world=world)


def test_keys_spread() -> None:
    found = keys(np.arange(10_000), 1, "rows")
    assert len(np.unique(found)) == 10_000
    assert abs(found.astype(np.float64).mean() / 2**64 - 0.5) < 0.02


def shapes(stacked: object) -> object:
    return tuple(stacked.shape) if isinstance(stacked, Tensor) else stacked


def test_a_loader_gives_batches_side_by_side(targets: Targets) -> None:
    dataset = TargetDataset(targets("path"))
    loader = DataLoader(dataset, batch_sampler=BucketBatches(dataset, 2, 0), collate_fn=collate)
    for batch in islice(loader, 6):
        assert isinstance(batch, TargetBatch)
        height, width = batch.records[0].height // 8, batch.records[0].width // 8
        assert shapes(batch.tensors["u"]) == (2, 4, 16, height, width)
        assert shapes(batch.noise) == (2, 16, height, width)
        assert shapes(batch.states) == (2, 5, 16, height, width)
        assert shapes(batch.t5) == (2, 20, 64)
        assert shapes(batch.clip) == (2, 64)
        assert shapes(batch.sigmas) == (2, 5)
        assert batch.negative_t5 is None
        for i, number in enumerate(batch.numbers):
            row = dataset[number]
            assert batch.records[i] == row.record
            assert batch.carried[i] == row.carried
            assert isinstance(batch.tensors["u"], Tensor)
            assert torch.equal(batch.tensors["u"][i], row.tensors["u"])


def test_what_cannot_be_stacked_stays_apart(targets: Targets) -> None:
    dataset = TargetDataset(targets("velocity"))
    batch = collate([dataset[0], dataset[4]])
    assert isinstance(batch.tensors["latent"], tuple)
    assert [shapes(one) for one in batch.tensors["latent"]] == [(16, 8, 8), (16, 4, 8)]
    assert shapes(batch.t) == (2, 3)
    assert shapes(batch.sigmas) == (2, 0)
    assert shapes(batch.negative_t5) == (2, 20, 64)


def test_a_row_that_lacks_something_is_none_among_the_others(targets: Targets) -> None:
    guided, plain = TargetDataset(targets("guided"))[0], TargetDataset(targets("pair"))[0]
    batch = collate([guided, plain])
    assert isinstance(batch.negative_t5, tuple)
    assert shapes(batch.negative_t5[0]) == (20, 64)
    assert batch.negative_t5[1] is None
