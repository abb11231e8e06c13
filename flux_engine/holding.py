"""An engine's weights for the GPU here: narrowed where that is asked, in images, on the card."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from flux_engine.engine import FluxEngine
from flux_engine.errors import SettingError
from flux_engine.models.fp8 import Fp8Linear, narrow_in, narrow_layers, settle
from flux_engine.planning import held
from flux_engine.vram.card import CudaCard
from flux_engine.vram.estimates import GIB
from flux_engine.vram.placements import Policy
from flux_engine.vram.rates import measured
from flux_engine.vram.store import Image, default_folder, in_memory, on_disk
from flux_engine.vram.units import MODULATIONS, Unit, units_of

logger = logging.getLogger(__name__)

PRODUCTS_FROM = (8, 9)  # compute capability
MULTIPLE = 16  # of widths that eight-bit products take
MARGIN = GIB // 2  # of what is free: for libraries that are loaded later, and for others


def has_blocks(model: nn.Module) -> bool:
    """Whether a model has blocks whose weights can be kept in eight bits."""
    return any(unit.kind == "block" for unit in units_of(model))


def open_bits(model: nn.Module, *, products: bool) -> None:
    """Let the blocks' layers keep eight bits; which, is open until they are settled or mapped."""
    for unit in units_of(model):
        if unit.kind == "block":
            narrow_layers(unit.modules[0], but=MODULATIONS, products=products, later=True)
    odd = [
        f"{name} ({layer.out_features}×{layer.in_features})"
        for name, layer in narrow_in(model)
        if products and (layer.out_features % MULTIPLE or layer.in_features % MULTIPLE)
    ]
    if odd:
        raise SettingError(
            f"approximate: fp8 takes widths that are multiples of {MULTIPLE}; {', '.join(odd)}"
        )


def settle_bits(model: nn.Module) -> None:
    """Narrow all that is open."""
    for _, layer in narrow_in(model):
        settle(layer)


def settle_unit(unit: Unit) -> None:
    """Narrow what is open of one unit, before it is read."""
    for module in unit.modules:
        for layer in module.modules():
            if isinstance(layer, Fp8Linear):
                settle(layer)


def hold_on_card(
    engine: FluxEngine, vram_limit: float | None, policies: Mapping[str, Policy]
) -> None:
    """Weights in images that this host's workers share, and what fits of them on the card."""
    check_products(engine)
    card = CudaCard(engine.device)
    machine = measured(card, engine.dtype, 0)  # libraries are loaded for it, which take memory
    torch.cuda.empty_cache()
    machine = replace(machine, memory=memory_limit(engine.device, vram_limit))
    images = {name: images_of(engine, name) for name in engine.models}
    engine.hold(
        *held(
            engine.models,
            engine.batching,
            card,
            machine,
            dtype=engine.dtype,
            images=images,
            policies=policies,
        )
    )
    for model in engine.models.values():
        for _, layer in narrow_in(model):
            layer.wide = None


def images_of(engine: FluxEngine, name: str) -> dict[str, Image]:
    """One model's, from the cache of this host, or of this process alone."""
    narrow = engine.approximation.narrows(name)
    weights = engine.fingerprints[name]
    told = json.dumps([weights, str(engine.dtype), narrow], sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    units = units_of(engine.models[name])
    try:
        return on_disk(units, default_folder(), key, name, writable=True, ready=settle_unit)
    except (OSError, RuntimeError) as error:  # no file locks there, or torch cannot map
        logger.warning(
            "weight images are not shared: each worker has its own",
            extra={"model": name, "why": str(error)},
        )
        return in_memory(units, settle_unit)


def check_products(engine: FluxEngine) -> None:
    """SettingError if the card has no products of eight bits."""
    capability = torch.cuda.get_device_capability(engine.device)
    if engine.approximation.products and capability < PRODUCTS_FROM:
        raise SettingError(
            f"approximate: fp8 needs a card of compute capability {PRODUCTS_FROM[0]}."
            f"{PRODUCTS_FROM[1]} or later; this one has {capability[0]}.{capability[1]}"
        )


def memory_limit(device: torch.device, vram_limit: float | None) -> int:
    """Bytes that may be used on the card: what is free but a margin, or so many GiB; negative: all
    but so many."""
    free, total = torch.cuda.mem_get_info(device)
    if vram_limit is None:
        return max(0, int(free) - MARGIN)
    asked = vram_limit * GIB if vram_limit >= 0 else total + vram_limit * GIB
    return int(min(asked, total))
