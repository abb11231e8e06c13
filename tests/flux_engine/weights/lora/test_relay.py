import pytest
import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.weights.lora.changes import Difference, LowRank
from flux_engine.weights.lora.file import Part
from flux_engine.weights.lora.names import Place, Rows
from flux_engine.weights.lora.relay import piece

H = 4


def part(up: Tensor, rows: Rows, magnitude: Tensor | None = None, alpha: float = 3.0) -> Part:
    torch.manual_seed(1)
    place = Place("dit", "double_blocks.0.img_attn.qkv", rows)
    down = torch.randn(up.shape[1], H)
    return Part(place, "weight", LowRank(down, up, alpha), magnitude, "named")


def third(n: int) -> Rows:
    return ((n * H, (n + 1) * H),)


def test_a_block_diagonal_one_is_split_without_growing() -> None:
    up = torch.zeros(3 * H, 3)
    for n in range(3):
        up[n * H : (n + 1) * H, n] = torch.randn(H)
    whole = part(up, ((0, 3 * H),))
    for n in range(3):
        change = piece([whole], [], 3 * H, third(n)).change
        assert isinstance(change, LowRank)
        assert (change.rank, change.scale) == (1, whole.change.scale)  # type: ignore[union-attr]
        assert torch.allclose(change.delta(), whole.delta(None)[n * H : (n + 1) * H])


def test_a_dense_one_is_cut_with_all_its_ranks() -> None:
    whole = part(torch.randn(3 * H, 2), ((0, 3 * H),))
    change = piece([whole], [], 3 * H, third(1)).change
    assert isinstance(change, LowRank)
    assert change.rank == 2


def test_rows_that_do_not_change_have_no_piece() -> None:
    up = torch.cat([torch.randn(H, 2), torch.zeros(2 * H, 2)])
    assert piece([part(up, ((0, 3 * H),))], [], 3 * H, third(2)).change is None
    assert piece([part(torch.randn(H, 2), third(0))], [], 3 * H, third(2)).change is None


def test_an_untrained_one_keeps_its_pieces() -> None:
    untrained = part(torch.zeros(3 * H, 2), ((0, 3 * H),))
    for n in range(3):
        assert piece([untrained], [], 3 * H, third(n)).change is not None


def test_magnitudes_are_fused_only_where_every_row_has_one() -> None:
    ones = torch.arange(1.0, H + 1)[:, None]
    parts = [part(torch.randn(H, 1), third(n), ones * (n + 1)) for n in range(3)]
    fused = piece(parts, [], 3 * H, ((0, 3 * H),))
    assert fused.magnitude is not None
    assert torch.equal(fused.magnitude, torch.cat([ones, 2 * ones, 3 * ones]))
    with pytest.raises(SettingError, match="a DoRA of some rows"):
        piece(parts[:2], [], 3 * H, ((0, 3 * H),))


def test_what_is_not_low_rank_is_not_cut() -> None:
    whole = Part(Place("dit", "x", ((0, 3 * H),)), "weight", Difference(torch.ones(3 * H, H)))
    with pytest.raises(SettingError, match="a Difference cannot be cut"):
        piece([whole], [], 3 * H, third(0))


def test_biases_go_with_their_rows() -> None:
    bias = Part(Place("dit", "x", third(1)), "bias", Difference(torch.ones(H)))
    made = piece([], [bias], 3 * H, ((0, 3 * H),))
    assert made.change is None
    assert made.bias is not None
    assert made.bias.tolist() == [0.0] * H + [1.0] * H + [0.0] * H


def test_eight_bit_factors_are_cut_and_fused() -> None:
    kind = torch.float8_e4m3fn
    whole = part(torch.randn(3 * H, 2).to(kind), ((0, 3 * H),))
    cut = piece([whole], [], 3 * H, third(1)).change
    assert isinstance(cut, LowRank)
    assert torch.equal(cut.delta(), whole.delta(None)[H : 2 * H])
    two = [part(torch.randn(H, 2).to(kind), third(n)) for n in range(2)]
    fused = piece(two, [], 3 * H, ((0, 3 * H),)).change
    assert isinstance(fused, LowRank)
    assert torch.allclose(fused.delta()[H : 2 * H], two[1].delta(None), atol=1e-6)
