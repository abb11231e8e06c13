from typing import Any

import pytest

from batch.backlog import Backlog, Lease, piece_size
from batch.shards import Shard

FILE: Any = None


def shard(name: str, rows: int = 16) -> Shard:
    return Shard(name, FILE, 0, rows)


def taken(backlog: Backlog) -> list[Lease]:
    return list(iter(backlog.take, None))


def test_shards_are_leased_in_their_order_and_one_that_comes_back_is_next() -> None:
    backlog = Backlog([shard("a"), shard("b")])
    first = backlog.take()
    assert first is not None
    backlog.give_back(first)
    assert [lease.shard.name for lease in taken(backlog)] == ["a", "b"]
    assert not backlog


def test_the_last_shards_are_cut_so_that_every_worker_has_a_piece() -> None:
    backlog = Backlog([shard("a"), shard("b", 10)])
    backlog.split(4)
    pieces = taken(backlog)
    assert [(p.shard.name, p.rows) for p in pieces] == [
        ("a", tuple(range(8))),
        ("a", tuple(range(8, 16))),
        ("b", tuple(range(8))),
        ("b", tuple(range(8, 10))),
    ]
    for piece in pieces:
        backlog.answered(piece)
    assert sorted((p.shard.name, p.rows) for p in taken(backlog)) == [("a", None), ("b", None)]


def test_nothing_is_cut_while_there_are_shards_enough_or_into_less_than_four_rows() -> None:
    backlog = Backlog([shard("a"), shard("b")])
    backlog.split(2)
    assert [lease.rows for lease in taken(backlog)] == [None, None]
    backlog = Backlog([shard("a", 6)])
    assert backlog.pieces == 2
    backlog.split(6)
    assert [lease.rows for lease in taken(backlog)] == [(0, 1, 2, 3), (4, 5)]
    backlog = Backlog([shard("a", 4)])
    backlog.split(6)
    assert [lease.rows for lease in taken(backlog)] == [None]


def test_busy_workers_find_small_pieces_when_they_have_done_at_different_times() -> None:
    backlog = Backlog([shard("a", 64), shard("b", 64), shard("c", 16)])
    backlog.split(2, busy=True)
    first = backlog.take()
    assert first == Lease(shard("a", 64))
    backlog.split(2, busy=True)
    pieces = taken(backlog)
    assert [len(piece.rows or ()) for piece in pieces[:4]] == [16] * 4
    assert pieces[4:] == [Lease(shard("c", 16))]  # as small as a piece already


@pytest.mark.parametrize(
    ("rows", "workers", "size"),
    [
        ([64], 2, 32),
        ([64] * 3, 4, 16),
        ([64], 4, 16),
        ([64, 64], 4, 32),
        ([64], 7, 12),
        ([1000], 3, 364),
        ([5], 4, 4),
    ],
)
def test_pieces_are_as_large_as_even_shares_allow(rows: list[int], workers: int, size: int) -> None:
    assert piece_size(rows, workers) == size


def test_a_piece_that_comes_back_is_not_cut_again() -> None:
    backlog = Backlog([shard("a")])
    backlog.split(2)
    one, two = taken(backlog)
    backlog.give_back(one)
    backlog.split(4)
    assert taken(backlog) == [one]
    backlog.answered(two)
    assert not backlog
    backlog.answered(one)
    backlog.split(4)
    assert taken(backlog) == [Lease(one.shard)]


def test_suspects_are_tried_alone_before_their_shard_is_leased_again() -> None:
    a = shard("a")
    backlog = Backlog([a, shard("b")])
    backlog.suspect(a, [3, 5])
    assert [lease.shard.name for lease in taken(backlog)] == ["b"]
    assert backlog.alone == 2
    one, two = backlog.take_alone(), backlog.take_alone()
    assert one == Lease(a, (3,), alone=True)
    assert two is not None
    backlog.answered(one)
    assert taken(backlog) == []
    backlog.give_back(two)
    assert backlog.take_alone() == two
    backlog.answered(two)
    assert taken(backlog) == [Lease(a)]


def test_pieces_that_wait_give_way_to_the_suspects_of_their_shard() -> None:
    a = shard("a")
    backlog = Backlog([a])
    backlog.split(4)
    flying = backlog.take()
    assert flying is not None
    backlog.suspect(a, [9])
    assert taken(backlog) == []
    alone = backlog.take_alone()
    assert alone is not None
    backlog.answered(alone)
    assert taken(backlog) == []
    backlog.answered(flying)
    assert taken(backlog) == [Lease(a)]
