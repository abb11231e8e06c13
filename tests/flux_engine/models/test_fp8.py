import copy

import pytest
import torch
from torch import nn

from flux_engine.models.fp8 import (
    E4M3,
    LARGEST,
    narrow,
    narrow_in,
    narrow_layers,
    narrowed,
    product,
    widened,
)
from flux_engine.models.text import T5_XXL, build_t5
from tests.flux_engine.asking import noise

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def layer(dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48, bias=bias).to(dtype).requires_grad_(False)


@DTYPES
def test_each_row_uses_the_whole_range_and_nothing_is_cut_off(dtype: torch.dtype) -> None:
    weight = (noise(0, 48, 64) * torch.logspace(-6, 3, 48)[:, None]).to(dtype)
    weight[5] = 0
    bits, scale = narrowed(weight)
    assert (bits.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (48, 1))
    values = bits.view(E4M3).float()
    assert values.isfinite().all()
    largest = values.abs().amax(1)
    assert (largest <= LARGEST).all()
    assert (largest[torch.arange(48) != 5] > 0.9 * LARGEST).all()
    assert torch.equal(scale, scale.bfloat16().float())
    error = widened(bits, scale, torch.float32) - weight.float()
    bound = weight.float().abs() / 16 + scale * 2**-9
    assert (error.abs() <= bound).all()


def test_no_weight_that_eight_bits_can_hold_is_changed() -> None:
    weight = noise(1, 16, 32).to(E4M3).float()
    weight[:, 0] = LARGEST
    assert torch.equal(widened(*narrowed(weight), torch.float32), weight)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_a_narrowed_layer_computes_with_its_widened_weights(dtype: torch.dtype, bias: bool) -> None:
    plain = layer(dtype, bias)
    bits, scale = narrowed(plain.weight)
    narrow(made := copy.deepcopy(plain))
    x = noise(2, 3, 5, 64).to(dtype)
    assert torch.equal(made(x), nn.functional.linear(x, widened(bits, scale, dtype), plain.bias))
    assert (made.in_features, made.out_features) == (64, 48)
    assert made.computes == dtype
    assert isinstance(made, nn.Linear)
    deviation = (made(x) - plain(x)).float().norm() / plain(x).float().norm()
    assert 0.005 < deviation < 0.05
    made.exact = True
    made.weight.data = plain.weight.data
    assert torch.equal(made(x), plain(x))


@DTYPES
def test_a_product_in_eight_bits_is_that_of_the_scaled_rows(dtype: torch.dtype) -> None:
    weight, bias, x = (
        noise(3, 48, 64).to(dtype),
        noise(4, 48).to(dtype),
        noise(5, 2, 9, 64).to(dtype),
    )
    bits, scale = narrowed(weight)
    rows = x.float()
    scales = (rows.abs().amax(-1, keepdim=True) / LARGEST).to(dtype).float()
    seen = (rows / scales).to(dtype).to(E4M3).float() * scales
    expected = seen @ widened(bits, scale, torch.float32).T + bias.float()
    out = product(x, bits, scale, bias)
    assert (out.dtype, out.shape) == (dtype, (2, 9, 48))
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=2e-2)
    assert torch.equal(product(x, bits, scale, None), product(x[:, :], bits, scale, None))


def test_a_row_of_a_product_does_not_depend_on_the_others() -> None:
    bits, scale = narrowed(noise(6, 48, 64))
    x = noise(7, 2, 9, 64)
    other = torch.cat([x[:1], 1e4 * x[1:]])
    broken = torch.cat([x[:1], torch.full_like(x[1:], torch.nan)])
    first = product(x, bits, scale, None)[0]
    assert torch.equal(product(other, bits, scale, None)[0], first)
    assert torch.equal(product(broken, bits, scale, None)[0], first)
    assert product(broken, bits, scale, None)[1].isnan().all()


def test_small_and_zero_rows_keep_their_size() -> None:
    weight = noise(8, 48, 64)
    bits, scale = narrowed(weight)
    x = noise(9, 3, 64) * torch.tensor([[1.0], [1e-6], [0.0]])
    out = product(x, bits, scale, None)
    torch.testing.assert_close(out[1] / 1e-6, (x[1] / 1e-6) @ weight.T, rtol=0.1, atol=2.0)
    assert not out[2].any()


def test_layers_are_narrowed_below_a_module_and_some_names_left_out() -> None:
    attention = nn.Sequential(layer(torch.float32), nn.LayerNorm(48))
    model = nn.ModuleDict({"mod": nn.Sequential(layer(torch.float32)), "attn": attention})
    narrow_layers(model, but=frozenset({"mod"}), products=True)
    ((name, made),) = narrow_in(model)
    assert name == "attn.0"
    assert made.products


def test_t5_computes_in_its_own_type_whatever_its_weights_are_kept_in() -> None:
    widths = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4}
    torch.manual_seed(0)
    t5 = build_t5({**T5_XXL, **widths, "num_layers": 2, "vocab_size": 50}).bfloat16()
    ids = torch.arange(10)[None]
    before = t5(input_ids=ids).last_hidden_state
    for block in t5.encoder.block:  # type: ignore[union-attr]
        narrow_layers(block)
    after = t5(input_ids=ids).last_hidden_state
    assert after.dtype == torch.bfloat16
    assert 0 < (after - before).float().norm() / before.float().norm() < 0.2


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_what_came_in_has_its_gradient_and_no_wide_weight_is_kept_for_it(
    dtype: torch.dtype, bias: bool
) -> None:
    narrow(made := layer(dtype, bias))
    weight = widened(made.weight, made.weight_scale, dtype)
    x, y = (noise(6, 3, 5, 64).to(dtype).requires_grad_() for _ in range(2))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        out = made(x)
    assert {tensor.dtype for tensor in kept} == {torch.int8, torch.float32}
    expected = nn.functional.linear(y, weight, made.bias)
    assert torch.equal(out, expected)
    for one in (out, expected):
        one.float().square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)
