"""CLIP's text model and T5's encoder as transformers names them, in any of its releases."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flux_engine.errors import CheckpointError
from flux_engine.models.text import (
    CLIP_L,
    T5_XXL,
    build_clip,
    build_t5,
    fill_constants,
    read_config,
    tie_embeddings,
)
from flux_engine.weights.keymaps.recipe import Blueprint, as_stored
from flux_engine.weights.stored import Shapes

CLIP, T5 = "CLIP text encoder", "T5 encoder"
CLIP_PREFIX = "text_model."  # in files, and in the models of transformers 4
POSITIONS = "embeddings.position_ids"
SHARED, EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"
ENOUGH = 0.9  # of a file's tensors are the published ones: what differs is then at fault


def is_clip(key: str) -> bool:
    return key.removeprefix(CLIP_PREFIX).startswith(
        ("encoder.layers.", "embeddings.token_embedding.")
    )


def is_t5(key: str) -> bool:
    return key.startswith("encoder.block.")


def clip_blueprint(shapes: Shapes, where: str, config: Path | None) -> Blueprint:
    prefix = CLIP_PREFIX if any(key.startswith(CLIP_PREFIX) for key in shapes) else ""

    def key_of(name: str) -> str:
        return prefix + name.removeprefix(CLIP_PREFIX)

    def finish(model: nn.Module) -> None:
        fill_constants(model, next(model.parameters()).device)

    model = _model(CLIP, shapes, where, config, key_of)
    recipes = {n: as_stored(key_of(n), t.shape) for n, t in model.state_dict().items()}
    positions = key_of(POSITIONS)
    extras = {positions: lambda tensors: _counts_up(tensors[positions])}
    return Blueprint(CLIP, "clip", model, recipes, extras, finish)


def t5_blueprint(shapes: Shapes, where: str, config: Path | None) -> Blueprint:
    table = SHARED if SHARED in shapes or EMBEDDED not in shapes else EMBEDDED

    def key_of(name: str) -> str:
        return table if name in (SHARED, EMBEDDED) else name

    model = _model(T5, shapes, where, config, key_of)
    recipes = {n: as_stored(key_of(n), t.shape) for n, t in model.state_dict().items()}
    extras = {EMBEDDED: lambda tensors: _same(tensors[EMBEDDED], tensors[SHARED])}
    return Blueprint(T5, "t5", model, recipes, extras if table == SHARED else {}, tie_embeddings)


def _model(
    layout: str, shapes: Shapes, where: str, config: Path | None, key_of: Callable[[str], str]
) -> nn.Module:
    """The model that `config` describes; without one the published model, if it is that."""
    build, published = (build_clip, CLIP_L) if layout == CLIP else (build_t5, T5_XXL)
    values = published if config is None else read_config(config, published)
    with torch.device("meta"):
        model = build(values)
    expected = {key_of(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    agreeing = sum(info.shape == expected.get(key) for key, info in shapes.items())
    if config is None and agreeing < ENOUGH * len(shapes):
        raise CheckpointError(
            where,
            reason=f"config.json is missing beside it, and it is not the published {layout}",
        )
    return model


def _counts_up(positions: Tensor) -> bool:
    """Older files hold the position numbers; anything else under that name is refused."""
    flat = positions.flatten()
    return flat.is_meta or bool(torch.equal(flat.long(), torch.arange(len(flat)).to(flat.device)))


def _same(table: Tensor, other: Tensor) -> bool:
    return table.is_meta or torch.equal(table, other)
