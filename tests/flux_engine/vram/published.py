"""FLUX.1-dev as it is published, on paper, and cards to plan for."""

from functools import cache

import torch

from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.models.text import CLIP_L, T5_XXL, build_clip, build_t5
from flux_engine.models.vae import AutoEncoder, VaeSpec
from flux_engine.planning import sizes_of
from flux_engine.vram.estimates import GIB, Machine, Sizes, Weights, Work
from flux_engine.vram.rates import KNOWN
from flux_engine.vram.units import units_of


@cache
def flux_dev() -> tuple[Weights, Sizes]:
    with torch.device("meta"):
        dit, vae = FluxTransformer(FluxSpec()), AutoEncoder(VaeSpec())
        models = {"dit": dit, "vae": vae, "clip": build_clip(CLIP_L), "t5": build_t5(T5_XXL)}
    sizes = sizes_of(dit.bfloat16(), vae, models["t5"], 2)
    units = {name: units_of(model.bfloat16()) for name, model in models.items()}
    weights = {n: {unit.name: (unit.kind, unit.nbytes) for unit in u} for n, u in units.items()}
    return weights, sizes


def square(side: int, *, sides: int = 1, steps: int = 28) -> Work:
    return Work(
        height=side, width=side, image_tokens=(side // 16) ** 2, text_tokens=512, steps=steps,
        sides=sides,
    )  # fmt: skip


def card(name: str = "H200", gib: float | None = None) -> Machine:
    known = KNOWN[name]
    memory = known.memory if gib is None else int(gib * GIB)
    return Machine(
        name=name, memory=memory, link=known.link, matmul=known.matmul, attention=known.attention
    )
