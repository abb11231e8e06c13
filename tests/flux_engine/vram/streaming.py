"""A small transformer, what it is asked, and residencies of it on a card made of host memory."""

import random
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.models.fp8 import narrow_layers
from flux_engine.vram.card import HostCard
from flux_engine.vram.planner import Stage
from flux_engine.vram.residency import Residency
from flux_engine.vram.units import MODULATIONS

SPEC = FluxSpec(
    width=64, heads=2, axes=(4, 14, 14), inner=128, double_blocks=3, single_blocks=4,
    channels_in=16, channels_out=16, text_width=24, pooled_width=16,
)  # fmt: skip
BLOCKS = [f"double_blocks.{i}" for i in range(3)] + [f"single_blocks.{i}" for i in range(4)]
TABLES = [f"{name}.table" for name in BLOCKS] + ["final_layer.table"]


def small_dit(dtype: torch.dtype = torch.float32) -> FluxTransformer:
    torch.manual_seed(0)
    return FluxTransformer(SPEC).to(dtype).eval().requires_grad_(False)


def narrow_dit(dtype: torch.dtype = torch.float32, *, products: bool = False) -> FluxTransformer:
    """The same with its blocks' weights in eight bits."""
    dit = small_dit(dtype)
    for block in (*dit.double_blocks, *dit.single_blocks):
        narrow_layers(block, but=MODULATIONS, products=products)
    return dit


def late(seed: int, most: float = 0.002) -> Callable[[], None]:
    """A copy stream that takes its time, now and then."""
    draw = random.Random(seed)

    def wait() -> None:
        if draw.random() < 0.5:
            time.sleep(draw.random() * most)

    return wait


def staged(resident: Mapping[str, frozenset[str]] | frozenset[str], slots: int) -> Stage:
    models = {"dit": resident} if isinstance(resident, frozenset) else resident
    return Stage(resident=models, slots=slots)


def rooms(dit: FluxTransformer, seed: int = 0) -> tuple[Residency, HostCard]:
    card = HostCard(late(seed))
    return Residency({"dit": dit}, card), card


def drawn(dit: FluxTransformer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A state, text, pooled text and positions."""
    draw = torch.Generator().manual_seed(1)
    dtype = dit.img_in.weight.dtype
    x = torch.randn(2, 12, 16, generator=draw).to(dtype)
    text = torch.randn(2, 5, 24, generator=draw).to(dtype)
    pooled = torch.randn(2, 16, generator=draw).to(dtype)
    return x, text, pooled, dit.rotation(torch.randint(0, 4, (17, 3), generator=draw))


@torch.inference_mode()
def dit_inputs(dit: FluxTransformer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What its forward pass takes; its table is made with the weights at home."""
    x, text, pooled, rotation = drawn(dit)
    table = dit.modulate(dit.condition(torch.ones(2), pooled, torch.ones(2)))
    return x, text, table, rotation


@torch.inference_mode()
def run(dit: FluxTransformer, room: Residency | None = None, steps: int = 3) -> list[Tensor]:
    """Velocities of so many steps, and the table that they were made with."""
    x, text, pooled, rotation = drawn(dit)
    room = room or Residency({"dit": dit})
    with room.loop("dit", 1, "table"):
        table = dit.modulate(dit.condition(torch.ones(2), pooled, torch.ones(2)))
    out = [table.clone()]
    with room.loop("dit", steps):
        for _ in range(steps):
            x = dit(x, text, table, rotation)
            out.append(x.clone())
    return out
