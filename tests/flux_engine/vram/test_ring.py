import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from flux_engine.models.dit import FluxTransformer
from flux_engine.vram.card import HostCard
from flux_engine.vram.ring import Ring
from tests.flux_engine.vram.streaming import (
    BLOCKS,
    TABLES,
    late,
    narrow_dit,
    rooms,
    run,
    small_dit,
    staged,
)


class Piece:
    """Some bytes of a value of its own; writes down where it is seen."""

    def __init__(self, value: int, size: int = 8) -> None:
        self.name = f"piece {value}"
        self.source = torch.full((size,), value, dtype=torch.uint8)
        self.flat: Tensor | None = None

    def show(self, flat: Tensor) -> None:
        self.flat = flat[: len(self.source)]

    def hide(self) -> None:
        self.flat = None


def ring(slots: int, seed: int = 0) -> Ring:
    out = Ring(HostCard(late(seed)))
    out.resize(slots, 8)
    return out


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_each_load_is_seen_in_its_turn(slots: int) -> None:
    turns, pieces = ring(slots), [Piece(i, 4 + i % 5) for i in range(4)]
    turns.begin(pieces, 3)
    for _ in range(3):
        for piece in pieces:
            turns.acquire(piece)
            assert piece.flat is not None
            assert torch.equal(piece.flat, piece.source)
            turns.release(piece)
    assert turns.card.copies == 12
    assert turns.card.copied == 3 * sum(piece.source.nbytes for piece in pieces)
    assert turns.card.host_waits == 0


def test_copies_run_ahead_by_the_slots_and_past_the_end_of_a_pass() -> None:
    turns, pieces = ring(3), [Piece(i) for i in range(4)]
    turns.card.log = log = []
    turns.begin(pieces, 2)
    assert [name for _, name in log] == ["piece 0", "piece 1", "piece 2"]
    for piece in pieces[:2]:
        turns.acquire(piece)
        turns.release(piece)
    # the second pass's first piece is ordered while the first pass still has two to go
    assert log[3:] == [
        ("wait", "piece 0"), ("mark", ""), ("copy", "piece 3"),
        ("wait", "piece 1"), ("mark", ""), ("copy", "piece 0"),
    ]  # fmt: skip


def test_a_load_that_is_asked_for_again_is_still_there_and_the_next_one_releases_it() -> None:
    turns, (one, two) = ring(2), (Piece(1), Piece(2))
    turns.begin([one, two], 1)
    turns.acquire(one)
    turns.acquire(one)
    turns.acquire(two)
    assert two.flat is not None
    assert torch.equal(two.flat, two.source)
    turns.finish()
    assert one.flat is None
    assert turns.card.copies == 2


def test_out_of_order_is_told() -> None:
    turns, (one, two) = ring(2), (Piece(1), Piece(2))
    turns.begin([one, two], 1)
    with pytest.raises(RuntimeError, match="piece 2 is called and piece 1 is due"):
        turns.acquire(two)
    turns.acquire(one)
    turns.acquire(two)
    turns.release(two)
    with pytest.raises(RuntimeError, match="piece 1 is called and nothing is due"):
        turns.acquire(one)


def test_a_programme_that_is_left_early_harms_no_later_one() -> None:
    turns, pieces = ring(3, seed=5), [Piece(i) for i in range(5)]
    for left in range(6):
        turns.begin(pieces)
        for piece in pieces[:left]:
            turns.acquire(piece)
            assert piece.flat is not None
            assert torch.equal(piece.flat, piece.source)
        turns.finish()
        assert not turns.coming


MAKES = {
    "float32": small_dit,
    "bfloat16": partial(small_dit, torch.bfloat16),
    "eight bits": narrow_dit,
    "eight-bit products": partial(narrow_dit, torch.bfloat16, products=True),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("seed", range(8))
def test_streamed_is_resident_is_any_resident_set_bit_for_bit(
    seed: int, make: Callable[[], FluxTransformer]
) -> None:
    expected = run(make())
    draw = random.Random(seed)
    room, card = rooms(dit := make(), seed)
    for _ in range(3):
        kept = frozenset(draw.sample(BLOCKS + TABLES, draw.randrange(len(BLOCKS + TABLES) + 1)))
        with room.phase(staged(kept, draw.randrange(1, 5))):
            before = card.copies, card.copied, card.host_waits
            made = run(dit, room)
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
        sizes = room.sizes()["dit"]
        blocks = [sizes[name][1] for name in BLOCKS if name not in kept]
        tables = [sizes[name][1] for name in TABLES if name not in kept]
        assert card.copies - before[0] == 3 * len(blocks) + len(tables)
        assert card.copied - before[1] == 3 * sum(blocks) + sum(tables)
        assert card.host_waits == before[2] == 0


def test_a_step_orders_only_copies_marks_and_waits_of_streams() -> None:
    room, card = rooms(dit := small_dit())
    with room.phase(staged(frozenset(BLOCKS[:3]), 2)):
        card.log = log = []
        run(dit, room, steps=2)
    kinds = [what for what, _ in log]
    assert set(kinds) == {"copy", "wait", "mark"}
    assert kinds.count("wait") == kinds.count("copy") + 3  # and the resident ones' first use


class Made:
    """Bytes that are made for the asking."""

    name = "made"

    def __init__(self) -> None:
        self.asked = 0

    @property
    def source(self) -> Tensor:
        self.asked += 1
        return torch.zeros(8, dtype=torch.uint8)

    def show(self, flat: Tensor) -> None:
        pass

    def hide(self) -> None:
        pass


def test_a_load_is_asked_for_its_bytes_once_a_copy() -> None:
    turns, loads = ring(2), [Made() for _ in range(3)]
    turns.begin(loads, 2)
    for load in loads * 2:
        turns.acquire(load)
        turns.release(load)
    assert [load.asked for load in loads] == [2, 2, 2]
