import math

import pytest
import torch
from torch import Tensor

from flux_engine.models.rope import rotate, rotation
from tests.flux_engine.asking import noise

AXES = (4, 14, 14)
FLUX_AXES = (16, 56, 56)


def at(*positions: tuple[int, int, int], axes: tuple[int, ...] = AXES) -> Tensor:
    return rotation(torch.tensor(positions), axes)


def test_the_origin_turns_nothing() -> None:
    x_BHLE = noise(0, 2, 3, 1, 32)
    assert torch.equal(rotate(x_BHLE, at((0, 0, 0))), x_BHLE)


def test_neighbouring_channels_are_turned_by_falling_angles() -> None:
    table = at((1, 2, 3))
    assert table.shape == (2, 1, 16)
    angles = [1 * 10000 ** (-2 * k / 4) for k in range(2)]
    angles += [row * 10000 ** (-2 * k / 14) for row in (2, 3) for k in range(7)]
    expected = torch.tensor([[math.cos(a) for a in angles], [math.sin(a) for a in angles]])
    torch.testing.assert_close(table[:, 0], expected, rtol=0, atol=6e-8)
    x = torch.zeros(1, 1, 1, 32)
    x[..., 0] = 1.0
    turned = rotate(x, table).flatten()
    assert turned[:2].tolist() == pytest.approx([math.cos(1), math.sin(1)])
    assert not turned[2:].any()


def test_only_the_distance_of_two_tokens_counts() -> None:
    q, k = noise(1, 1, 1, 1, 32), noise(2, 1, 1, 1, 32)

    def score(mine: tuple[int, int, int], other: tuple[int, int, int]) -> float:
        return (rotate(q, at(mine)) * rotate(k, at(other))).sum().item()

    near = score((0, 3, 5), (0, 7, 1))
    assert score((0, 103, 45), (0, 107, 41)) == pytest.approx(near, abs=1e-4)
    assert abs(score((0, 103, 45), (0, 107, 43)) - near) > 1e-2


def test_turning_keeps_lengths() -> None:
    x = noise(3, 2, 4, 5, 128)
    turned = rotate(x, rotation(torch.arange(15).reshape(5, 3), FLUX_AXES))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_positions_are_exact_beyond_256() -> None:
    """bfloat16 holds integers to 256: a table in it takes 4112 pixels for 4096."""
    table = at(*((0, 0, n) for n in range(600)), axes=FLUX_AXES)
    assert len({tuple(row) for row in table.permute(1, 0, 2).flatten(1).tolist()}) == 600
    assert table[0, 511, 36].item() == pytest.approx(math.cos(511), abs=6e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_of_the_input_comes_back_after_float32(dtype: torch.dtype) -> None:
    x = noise(4, 1, 2, 3, 32).to(dtype)
    table = rotation(torch.arange(9).reshape(3, 3), AXES)
    assert rotate(x, table).dtype == dtype
    assert torch.equal(rotate(x, table), rotate(x.float(), table).to(dtype))


def test_no_tokens_are_no_rows() -> None:
    assert rotation(torch.zeros(0, 3, dtype=torch.int64), AXES).shape == (2, 0, 16)


@pytest.mark.oracle
def test_the_table_is_that_of_diffusers() -> None:
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    ids = torch.stack([torch.zeros(700), torch.arange(700), torch.arange(700).flip(0)], dim=1)
    cos, sin = FluxPosEmbed(10000, list(FLUX_AXES))(ids)
    ours = rotation(ids.long(), FLUX_AXES).repeat_interleave(2, dim=-1)
    torch.testing.assert_close(ours, torch.stack([cos, sin]), rtol=0, atol=1e-7)
