"""An engine on paper: what a job's weights weigh, and what a card would do with them.

Files are looked into, not read; where they are not here yet, FLUX.1-dev's published sizes stand in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from flux_engine.assembly import open_model
from flux_engine.batching import Batching
from flux_engine.holding import memory_limit, open_bits
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.models.text import CLIP_L, T5_XXL, build_clip, build_t5
from flux_engine.models.vae import AutoEncoder, VaeSpec
from flux_engine.planning import Planning, sizes_of
from flux_engine.vram.card import CudaCard
from flux_engine.vram.estimates import GIB, Machine
from flux_engine.vram.placements import NARROW
from flux_engine.vram.rates import KNOWN, measured
from flux_engine.vram.units import units_of
from flux_engine.weights.keymaps.recipe import Role
from flux_engine.weights.load import ROLES, on_paper
from flux_engine.weights.source import ModelSource, at_hand

if TYPE_CHECKING:
    from schemas.engine import EngineConfig

ASSUMED = "H200"  # where no GPU is to be seen


@dataclass(frozen=True)
class Paper:
    """A planning without an engine, and what was assumed for it."""

    planning: Planning
    assumed: tuple[str, ...]


def planned(config: "EngineConfig") -> Paper:
    """How a worker would plan, as far as this machine can tell."""
    dtype: torch.dtype = getattr(torch, config.torch_dtype)
    models, assumed = models_of(config)
    dit, vae = models["dit"], models["vae"]
    assert isinstance(dit, FluxTransformer)
    assert isinstance(vae, AutoEncoder)
    narrow, guessed = narrow_of(config, models)
    for name, model in models.items():
        model.to(dtype)
        if name in narrow:
            open_bits(model, products=False)
    weights = {
        name: {unit.name: (unit.kind, unit.nbytes) for unit in units_of(model)}
        for name, model in models.items()
    }
    machine, told = card_of(config, dtype)
    planning = Planning(
        Batching(text=config.text_batch, micro=config.micro_batch, decode=config.decode_batch),
        cell=vae.spec.factor * 2,
        machine=machine,
        weights=weights,
        sizes=sizes_of(dit, vae, models["t5"], dtype.itemsize),
    )
    return Paper(planning, (*assumed, *guessed, *told))


def models_of(config: "EngineConfig") -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """The job's models on the meta device."""
    if isinstance(config.model, str):
        groups = list(open_model(config.model)[1])
    else:
        sources = [ModelSource(**entry.source()) for entry in config.model]
        groups = [list(files) for source in sources if (files := at_hand(source))]
    found = on_paper(groups, axes=config.axes_dim)
    models: dict[str, nn.Module] = {role: found.get(role) or published(role) for role in ROLES}
    absent = ", ".join(role for role in ROLES if role not in found)
    return models, (f"{absent}: not here yet, taken to be FLUX.1-dev's",) if absent else ()


def narrow_of(
    config: "EngineConfig", models: Mapping[str, nn.Module]
) -> tuple[set[str], tuple[str, ...]]:
    """Models whose blocks keep eight bits. Of files that are not here nobody knows which they are:
    if one of them keeps eight bits, all that are missing are taken to."""
    narrow = {"dit"} if "fp8" in config.approximate else set()
    if isinstance(config.model, str):
        return narrow, ()
    seen, guessed = set(), False
    for entry in config.model:
        files = at_hand(ModelSource(**entry.source()))
        roles = set(on_paper([files], axes=config.axes_dim)) if files else set()
        seen |= roles
        if NARROW in entry.placements().values():
            narrow |= roles
            guessed |= not roles
    absent = set(models) - seen if guessed else set()
    told = f"{', '.join(sorted(absent))}: taken to be kept in eight bits"
    return narrow | absent, (told,) if absent else ()


def published(role: Role) -> nn.Module:
    """FLUX.1-dev's, on the meta device."""
    with torch.device("meta"):
        match role:
            case "dit":
                return FluxTransformer(FluxSpec())
            case "vae":
                return AutoEncoder(VaeSpec())
            case "clip":
                return build_clip(CLIP_L)
            case "t5":
                return build_t5(T5_XXL)


def card_of(config: "EngineConfig", dtype: torch.dtype) -> tuple[Machine | None, tuple[str, ...]]:
    """The GPU here, measured; without one, what is known of one that is assumed."""
    if config.device == "cpu":
        return None, ()
    if torch.cuda.is_available():
        device = torch.device("cuda")
        limit = memory_limit(device, config.vram_limit)
        return measured(CudaCard(device), dtype, limit), ()
    known = KNOWN[ASSUMED]
    asked = config.vram_limit or 0.0
    memory = min(known.memory, int(asked * GIB + (known.memory if asked <= 0 else 0)))
    machine = Machine(
        name=known.name,
        memory=memory,
        link=known.link,
        matmul=known.matmul,
        attention=known.attention,
    )
    return machine, (f"no GPU here: planned for an {ASSUMED}, from figures of its kind",)
