import pytest
import torch
from torch import Tensor, nn

from flux_engine.models.blocks import (
    DoubleBlock,
    FinalLayer,
    Modulation,
    RMSNorm,
    SingleBlock,
    attend,
    layer_norm,
    modulated,
)
from flux_engine.models.rope import rotation
from tests.flux_engine.asking import noise

WIDTH, HEADS, INNER = 64, 2, 128
IMAGE, TEXT = 6, 4


@pytest.fixture(autouse=True)
def _drawn_weights() -> None:
    torch.manual_seed(0)


def turns(tokens: int) -> Tensor:
    return rotation(torch.arange(3 * tokens).reshape(tokens, 3), (4, 14, 14))


def test_a_norm_divides_by_the_root_mean_square_and_scales() -> None:
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[3.0, -3.0, 3.0, 3.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[1.0, -2.0, 3.0, 4.0]]))


def test_the_mean_square_of_half_precision_is_taken_in_float32() -> None:
    norm = RMSNorm(64).bfloat16()
    x = (1000 * noise(0, 8, 64)).bfloat16()
    exact = x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x).float(), exact, rtol=2**-7, atol=0)


def test_no_shift_and_no_scale_is_a_plain_layer_norm() -> None:
    x, zero = noise(0, 2, 5, WIDTH), torch.zeros(2, WIDTH)
    assert torch.equal(modulated(x, zero, zero), layer_norm(x))
    torch.testing.assert_close(modulated(x, zero + 0.5, zero + 1), 2 * layer_norm(x) + 0.5)


def test_a_modulation_gives_its_vectors_in_order() -> None:
    modulation = Modulation(WIDTH, 6)
    c_BD = noise(0, 3, WIDTH)
    rows = modulation(c_BD)
    assert rows.shape == (3, 6, WIDTH)
    flat = modulation.lin(nn.functional.silu(c_BD))
    assert torch.equal(rows[:, 2], flat[:, 2 * WIDTH : 3 * WIDTH])


def test_each_row_attends_to_all_of_its_own_tokens_and_no_other_rows() -> None:
    q, k, v = (noise(i, 2, HEADS, 5, 32) for i in range(3))
    out = attend(q, k, v, turns(5))
    assert out.shape == (2, 5, WIDTH)
    v[1] += 1.0
    changed = attend(q, k, v, turns(5))
    assert torch.equal(out[0], changed[0])
    torch.testing.assert_close(changed[1], out[1] + 1.0)


def test_closed_gates_leave_both_streams_as_they_are() -> None:
    block = DoubleBlock(WIDTH, HEADS, INNER)
    img, txt = noise(0, 2, IMAGE, WIDTH), noise(1, 2, TEXT, WIDTH)
    rows = torch.zeros(2, DoubleBlock.MODULATIONS, WIDTH)
    img_out, txt_out = block(img, txt, rows, turns(TEXT + IMAGE))
    assert torch.equal(img_out, img)
    assert torch.equal(txt_out, txt)


def test_a_double_block_takes_the_image_streams_rows_first() -> None:
    block = DoubleBlock(WIDTH, HEADS, INNER)
    img, txt = noise(0, 1, IMAGE, WIDTH), noise(1, 1, TEXT, WIDTH)
    rows = torch.zeros(1, 12, WIDTH)
    rows[:, 5] = 1.0  # the gate of the image's MLP
    img_out, txt_out = block(img, txt, rows, turns(TEXT + IMAGE))
    torch.testing.assert_close(img_out, img + block.img_mlp(layer_norm(img)))
    assert torch.equal(txt_out, txt)


def test_image_and_text_meet_in_the_attention() -> None:
    block = DoubleBlock(WIDTH, HEADS, INNER)
    img, txt = noise(0, 1, IMAGE, WIDTH), noise(1, 1, TEXT, WIDTH)
    rows = torch.ones(1, 12, WIDTH)
    before, _ = block(img, txt, rows, turns(TEXT + IMAGE))
    after, _ = block(img, txt + noise(2, 1, TEXT, WIDTH), rows, turns(TEXT + IMAGE))
    assert (before - after).abs().max() > 1e-3


def test_a_single_block_adds_its_gated_answer() -> None:
    block = SingleBlock(WIDTH, HEADS, INNER)
    x, rows = noise(0, 2, 5, WIDTH), torch.zeros(2, 3, WIDTH)
    assert torch.equal(block(x, rows, turns(5)), x)
    rows[:, 2] = 1.0
    once = block(x, rows, turns(5)) - x
    rows[:, 2] = 2.0
    torch.testing.assert_close(block(x, rows, turns(5)) - x, 2 * once)


@pytest.mark.parametrize("kind", [DoubleBlock, SingleBlock])
def test_a_block_needs_no_modulation_weights_in_the_loop(
    kind: type[DoubleBlock] | type[SingleBlock],
) -> None:
    block = kind(WIDTH, HEADS, INNER)
    rows = block.modulate(noise(0, 1, WIDTH))
    assert rows.shape == (1, kind.MODULATIONS, WIDTH)
    for name in ("img_mod", "txt_mod", "modulation"):
        if hasattr(block, name):
            setattr(block, name, None)
    streams = (noise(1, 1, IMAGE, WIDTH), noise(2, 1, TEXT, WIDTH))
    if isinstance(block, DoubleBlock):
        block(*streams, rows, turns(IMAGE + TEXT))
    else:
        block(torch.cat(streams, 1), rows, turns(IMAGE + TEXT))


def test_the_final_layer_shifts_before_it_scales() -> None:
    layer = FinalLayer(WIDTH, 8)
    x, rows = noise(0, 1, IMAGE, WIDTH), noise(1, 1, 2, WIDTH)
    expected = layer.linear(layer_norm(x) * (1 + rows[:, 1:]) + rows[:, :1])
    torch.testing.assert_close(layer(x, rows), expected)
    c_BD = noise(2, 1, WIDTH)
    shift, _ = layer.adaLN_modulation(c_BD).chunk(2, dim=-1)
    assert torch.equal(layer.modulate(c_BD)[:, 0], shift)
