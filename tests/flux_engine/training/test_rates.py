import pytest

from flux_engine.training.rates import Rates


def test_a_constant_rate_is_whole_from_the_first_step_on() -> None:
    rates = Rates(rate=1e-4, steps=10)
    assert [rates(step) for step in (0, 4, 9)] == [1e-4] * 3


def test_a_warm_up_rises_to_the_whole_rate_and_never_starts_at_zero() -> None:
    rates = Rates(rate=1.0, steps=100, warmup_steps=4)
    assert [rates(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_falling_rate_ends_near_its_floor(shape: str) -> None:
    rates = Rates(rate=2.0, steps=1000, shape=shape, floor=0.1)  # type: ignore[arg-type]
    assert rates(0) == pytest.approx(2.0)
    assert rates(500) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rates(999) == pytest.approx(0.2, abs=2e-3)
