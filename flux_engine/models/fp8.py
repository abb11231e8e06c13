"""Linear layers whose weights are kept in eight bits: e4m3 with a scale for each output row.

They compute as others do, from weights that are widened on the way; or, where that is asked for,
as eight-bit products of rows that are scaled as they come.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST = 1e-12  # a row of zeros has some scale too


def narrowed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bits (as int8) and scales, (rows, 1) in float32, of a matrix.

    Scales are numbers that bfloat16 can hold, so that widening rounds once.
    """
    largest = weight.abs().amax(1, keepdim=True).float().clamp(min=LEAST) / LARGEST
    scale = largest.bfloat16().float()
    scale = torch.where(scale < largest, scale * (1 + 2**-7), scale).bfloat16().float()
    return (weight.float() / scale).to(E4M3).view(torch.int8), scale


def widened(bits: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return bits.view(E4M3).to(dtype).mul_(scale.to(dtype))


def product(x: Tensor, bits: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias in eight bits, each row of `x` with a scale of its own."""
    rows = x.flatten(0, -2)
    # in the rows' own type, and so with a scale that it can hold: float32 would ask for twice the
    # memory. What that rounds above the largest number still rounds down to it
    largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
    scales = (largest.float().clamp(min=LEAST) / LARGEST).to(x.dtype)
    out: Tensor = torch._scaled_mm(
        (rows / scales).to(E4M3),
        bits.view(E4M3).t(),
        scale_a=scales.float(),
        scale_b=scale.t(),
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,  # the only one that GPUs have for scales by row
        use_fast_accum=True,
    )
    return out.to(x.dtype).reshape(*x.shape[:-1], -1)


class Widening(torch.autograd.Function):
    """A product with widened bits, which are widened again for the gradient of what came in.

    So that no wide weight is kept until then. Weight and bias have no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(bits, scale)
        return F.linear(x, widened(bits, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        bits, scale = ctx.saved_tensors
        return grads[0] @ widened(bits, scale, grads[0].dtype), None, None, None


class Fp8Linear(nn.Linear):
    """Made of a plain layer, in place; `weight` holds bits.

    They are typed int8 because transformers' T5 casts its values to a weight's floating type.
    """

    weight_scale: Tensor
    wide: Tensor | None  # the weight, until it is narrowed
    computes: torch.dtype
    products: bool
    exact: bool

    def forward(self, x: Tensor) -> Tensor:
        if self.exact:
            return F.linear(x, self.weight, self.bias)
        if self.products:
            return product(x, self.weight, self.weight_scale, self.bias)
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = Widening.apply(x, self.weight, self.weight_scale, self.bias)  # type: ignore[no-untyped-call]
            return out
        return F.linear(x, widened(self.weight, self.weight_scale, x.dtype), self.bias)


def narrow(layer: nn.Linear, *, products: bool = False, later: bool = False) -> Fp8Linear:
    """The layer itself, which from now on keeps eight bits.

    `later` leaves them open: for `settle`, or for whoever has them already.
    """
    wide = layer.weight.data
    layer.__class__ = Fp8Linear
    assert isinstance(layer, Fp8Linear)
    layer.weight = nn.Parameter(torch.empty_like(wide, dtype=torch.int8), requires_grad=False)
    scale = torch.empty(len(wide), 1, dtype=torch.float32, device=wide.device)
    layer.register_buffer("weight_scale", scale, persistent=False)
    layer.wide, layer.computes, layer.products, layer.exact = wide, wide.dtype, products, False
    if not later:
        settle(layer)
    return layer


def settle(layer: Fp8Linear) -> None:
    """Narrow what was left open; the wide weight is let go."""
    if layer.wide is not None:
        bits, scale = narrowed(layer.wide)
        layer.weight.data, layer.weight_scale.data = bits, scale
        layer.wide = None


def narrow_layers(
    module: nn.Module,
    *,
    but: frozenset[str] = frozenset(),
    products: bool = False,
    later: bool = False,
) -> None:
    """All linear layers below a module, without children of certain names."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            narrow(child, products=products, later=later)
        elif name not in but:
            narrow_layers(child, but=but, products=products, later=later)


def narrow_in(model: nn.Module) -> Iterator[tuple[str, Fp8Linear]]:
    """A model's layers that keep eight bits, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            yield name, module
