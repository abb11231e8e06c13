"""FLUX.1 with random weights: at its full size, or small; and what a step is asked.

Weights are drawn tensor by tensor from generators of their own, on the card where there is one,
with the variance that keeps activations in range. They show times and deviations of one forward
pass, and say nothing of pictures.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flux_engine.latents import position_ids
from flux_engine.models.dit import FluxSpec, FluxTransformer

SMALL = FluxSpec(
    width=256, heads=4, axes=(8, 28, 28), inner=1024, double_blocks=3, single_blocks=6,
    text_width=64, pooled_width=64,
)  # fmt: skip
SPECS = {"full": FluxSpec(), "tiny": SMALL}
TEXT_TOKENS = {"full": 512, "tiny": 32}


def fill(named: Iterable[tuple[str, Tensor]], dtype: torch.dtype, device: torch.device) -> None:
    """Draw weights into host tensors that are there but empty."""
    for name, tensor in named:
        place = device if device.type == "cuda" else torch.device("cpu")
        draw = torch.Generator(place).manual_seed(zlib.crc32(name.encode()))
        if not tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
            continue
        made = torch.randn(tensor.shape, generator=draw, device=place, dtype=torch.float32)
        if tensor.ndim < 2:
            made = 1 + 0.1 * made if name.endswith(("scale", "norm.weight")) else 0.02 * made
        else:
            made /= tensor[0].numel() ** 0.5
        tensor.copy_(made.to(dtype))


def empty(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model from the meta device, with memory of the host."""
    made = model.to_empty(device="cpu").to(dtype)
    return made.eval().requires_grad_(False)


def transformer(spec: str, dtype: torch.dtype, device: torch.device) -> FluxTransformer:
    with torch.device("meta"):
        model = FluxTransformer(SPECS[spec])
    made = empty(model, dtype)
    assert isinstance(made, FluxTransformer)
    fill(made.named_parameters(), dtype, device)
    return made


@dataclass(frozen=True)
class Ask:
    """One step's inputs for some rows, on the device."""

    side: int
    x_BSC: Tensor
    text_BTW: Tensor
    pooled_BP: Tensor
    sigma_B: Tensor
    guidance_B: Tensor
    ids_LA: Tensor

    @property
    def rows(self) -> int:
        return len(self.x_BSC)


def ask(spec: str, side: int, rows: int, dtype: torch.dtype, device: torch.device) -> Ask:
    """Row 0 is the same in every batch."""
    flux, tokens = SPECS[spec], (side // 16) ** 2

    def drawn(name: str, *shape: int) -> Tensor:
        made = [
            torch.randn(
                shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + i)
            )
            for i in range(rows)
        ]
        return torch.stack(made).to(device, dtype)

    return Ask(
        side=side,
        x_BSC=drawn("x", tokens, flux.channels_in),
        text_BTW=drawn("text", TEXT_TOKENS[spec], flux.text_width),
        pooled_BP=drawn("pooled", flux.pooled_width),
        sigma_B=torch.full((rows,), 0.5, device=device),
        guidance_B=torch.full((rows,), 3.5, device=device),
        ids_LA=position_ids(TEXT_TOKENS[spec], side // 8, side // 8).to(device),
    )
