"""Which rows a step sees."""

from fractions import Fraction

import numpy as np
import pytest

from batch.errors import JobError
from batch.targets.batches import BucketBatches
from batch.training.stream import Draft, Share, Stream


class Rows:
    """So many rows of one size."""

    def __init__(self, count: int) -> None:
        self.count = count

    def buckets(self) -> dict[tuple[int, int], np.ndarray]:
        return {(64, 64): np.arange(self.count)}

    def row_groups(self) -> np.ndarray:
        return np.zeros(self.count, np.int64)


def share(count: int, batch: int = 1, *, repeat: int = 1, dropout: float = 0.0) -> Share:
    return Share("rows", BucketBatches(Rows(count), batch, 0), repeat, dropout)


def stream(*shares: Share, per_step: int = 2, **values: object) -> Stream:
    return Stream(shares, seed=0, per_step=per_step, **values)  # type: ignore[arg-type]


def test_ranks_together_see_what_one_alone_sees() -> None:
    whole = stream(share(24), per_step=4)
    for step in range(whole.steps):
        alone = whole.step(step)
        for world in (2, 4):
            parts: list[Draft] = []
            for rank in range(world):
                parts += whole.step(step, rank, world)
            assert sorted(parts, key=lambda draft: draft.number) == alone


def test_equal_weights_give_each_dataset_one_micro_batch_in_every_step() -> None:
    weights = (Fraction(1), Fraction(1))
    mixed = stream(share(10), share(1000), weights=weights, steps=50)
    for step in range(50):
        assert [draft.dataset for draft in mixed.step(step)] == [0, 1]


@pytest.mark.parametrize("weights", [(1, 2, 4), (5, 1, 1), (1, 1, 1), (3, 7), (1,)])
def test_shares_are_kept_at_every_moment_and_no_micro_batch_is_skipped(
    weights: tuple[int, ...],
) -> None:
    mixed = stream(*[share(7)] * len(weights), weights=[Fraction(w) for w in weights], steps=60)
    seen = [0] * len(weights)
    for number in range(60 * mixed.per_step):
        dataset, turn = mixed.turn(number)
        assert turn == seen[dataset]
        seen[dataset] += 1
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - (number + 1) * weight / sum(weights)) < len(weights)
    assert seen == mixed.counts()


def test_epochs_and_repeats_say_how_many_steps_there_are() -> None:
    assert stream(share(8, 2), epochs=3).steps == 6
    assert stream(share(8, 2, repeat=5), epochs=1).steps == 10
    assert stream(share(8, 2), epochs=1, per_step=3).steps == 2  # the last step is whole
    # with the sizes for weights all datasets are through together
    assert stream(share(8), share(24), epochs=1).steps == 16
    # with given ones the first decides
    assert stream(share(8), share(24), epochs=1, weights=(Fraction(1), Fraction(1))).steps == 8


def test_an_epoch_shows_every_row_once() -> None:
    whole = stream(share(12, 3), epochs=2)
    rows = [slot.row for step in range(whole.steps) for d in whole.step(step) for slot in d.slots]
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))


def test_captions_are_dropped_as_often_as_is_asked_and_the_same_ones_again() -> None:
    dropping = stream(share(500, 4, dropout=0.3), per_step=1, steps=500)
    drawn = [slot.dropped for step in range(500) for d in dropping.step(step) for slot in d.slots]
    assert 0.25 < np.mean(drawn) < 0.35
    assert dropping.at(77) == stream(share(500, 4, dropout=0.3), per_step=1, steps=9).at(77)
    assert not any(slot.dropped for slot in stream(share(500, 4)).at(5).slots)


def test_without_datasets_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(JobError, match="no datasets"):
        stream()
