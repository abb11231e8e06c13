import pytest

from flux_engine.vram.estimates import compute_seconds, of_kind
from flux_engine.vram.seating import best, kept, seatings, step_seconds
from tests.flux_engine.vram.published import card, flux_dev, square

UNITS = {f"double.{i}": 20 for i in range(6)} | {f"single.{i}": 10 for i in range(6)}


def test_heavy_units_stay_first_spread_evenly() -> None:
    assert kept(UNITS, 0) == kept(UNITS, -5) == kept(UNITS, 9) == frozenset()
    assert kept(UNITS, 69) == {"double.0", "double.2", "double.4"}
    assert kept(UNITS, 120) == {name for name in UNITS if name.startswith("double")}
    assert kept(UNITS, 145) == kept(UNITS, 120) | {"single.0", "single.3"}
    assert kept(UNITS, 180) == kept(UNITS, 1000) == set(UNITS)


def test_what_a_step_takes_is_its_computing_or_its_copies() -> None:
    assert step_seconds([0, 0, 0], [1.0, 2.0, 3.0], 0, 1.0) == pytest.approx(6)
    assert step_seconds([1, 1, 1], [2.0, 2.0, 2.0], 2, 1.0) == pytest.approx(6)
    assert step_seconds([4, 4, 4], [1.0, 1.0, 1.0], 2, 1.0) == pytest.approx(12)
    # one slot: nothing overlaps
    assert step_seconds([1, 1, 1], [2.0, 2.0, 2.0], 1, 1.0) == pytest.approx(9)
    # the block that stays hides its neighbours' copies
    assert step_seconds([4, 0, 4], [1.0, 6.0, 1.0], 2, 1.0) == pytest.approx(8)


@pytest.mark.parametrize(
    ("batch", "share"), [(1, 0.29), (2, 0.58), (4, 0.91), (8, 1.0)]
)  # fmt: skip
def test_a_streamed_step_on_an_h200_is_near_what_a_contiguous_ring_would_take(
    batch: int, share: float
) -> None:
    weights, sizes = flux_dev()
    blocks = of_kind(weights, "dit", "block")
    compute = batch * compute_seconds(card(), square(1024), sizes, blocks)
    each = [compute / len(blocks)] * len(blocks)
    streamed = step_seconds(list(blocks.values()), each, 2, 50e9)
    assert compute / streamed == pytest.approx(share, abs=0.02)


def test_a_seating_fits_and_streams_what_does_not_stay() -> None:
    weights, sizes = flux_dev()
    machine = card("H200", 12)
    found = seatings(machine, weights, square(1024), sizes, (1, 4, 8))
    assert {one.batch for one in found} == {1, 4, 8}
    for one in found:
        assert one.nbytes <= machine.memory
        blocks, stay = of_kind(weights, "dit", "block"), one.of("dit")
        streamed = {k: n for k, n in blocks.items() if k not in stay}
        assert one.copied == sum(streamed.values()) > 0
    assert seatings(card("H200", 1), weights, square(1024), sizes, (1,)) == []


def test_the_best_is_the_fastest_and_of_equals_the_smallest() -> None:
    weights, sizes = flux_dev()
    tight = best(seatings(card("H200", 6), weights, square(1024), sizes, (1, 2, 4, 8)))
    assert tight.batch > 2
    roomy = best(seatings(card("H200"), weights, square(1024), sizes, (1, 2, 4, 8)))
    assert (roomy.batch, roomy.slots, roomy.copied) == (1, 0, 0)
    assert len(roomy.stays) == 57 + 58
