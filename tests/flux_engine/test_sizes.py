import numpy as np
import pytest

from flux_engine.sizes import training_size

MEGA = 1024 * 1024


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((1920, 1080), (1360, 768)),
        ((1000, 700), (992, 688)),
        ((4000, 3000), (1168, 880)),
        ((1023, 1025), (1008, 1024)),
        ((1024, 1024), (1024, 1024)),
        ((5, 7), (16, 16)),
        ((100000, 20), (72400, 16)),
    ],
)
def test_a_picture_is_scaled_down_and_cut_to_the_grid(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    assert training_size(*size, MEGA, 16) == wanted


def test_no_picture_that_has_a_step_on_each_side_is_enlarged_or_too_large() -> None:
    random = np.random.default_rng(0)
    for width, height in random.integers(64, 5000, (500, 2)).tolist():
        for step in (16, 64):
            wide, high = training_size(width, height, 512 * 512, step)
            assert wide % step == high % step == 0
            assert wide <= max(width, step)
            assert high <= max(height, step)
            assert wide * high <= 512 * 512 or step in (wide, high)
