"""FLUX transformers under their two sets of names: as published (BFL), and diffusers'."""

import re
from collections.abc import Iterable, Sequence

import torch

from flux_engine.errors import CheckpointError
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.weights.keymaps.recipe import (
    Blueprint,
    Recipe,
    as_stored,
    halves_swapped,
    stacked,
)
from flux_engine.weights.stored import Shapes, most_common

BFL, DIFFUSERS = "BFL transformer", "diffusers transformer"

# ours (BFL's) → diffusers'; several names are rows that we keep in one tensor
OUTSIDE: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
BLOCKS = {
    "double_blocks": ("transformer_blocks", DOUBLE),
    "single_blocks": ("single_transformer_blocks", SINGLE),
}
# diffusers stores (scale, shift) where BFL stores (shift, scale)
SWAPPED = "final_layer.adaLN_modulation.1"

WIDTH = re.compile(
    r"(img_in|txt_in|time_in\.\w+|vector_in\.\w+|x_embedder|context_embedder"
    r"|time_text_embed\..*)\.(weight|bias)"
)
HEAD = re.compile(
    r".*(query_norm|key_norm)\.scale|.*attn\.(norm_q|norm_k|norm_added_q|norm_added_k)\.weight"
)
INNER = re.compile(r".*((img|txt)_mlp\.0|ff(_context)?\.net\.0\.proj|proj_mlp)\.(weight|bias)")
FUSED = re.compile(r"single_blocks\.\d+\.linear1\.(weight|bias)")
OUT = re.compile(r"(final_layer\.linear|proj_out)\.(weight|bias)")


def is_bfl(key: str) -> bool:
    return key.startswith(("double_blocks.", "single_blocks."))


def is_diffusers(key: str) -> bool:
    return key.startswith(("transformer_blocks.", "single_transformer_blocks."))


def flux_spec(
    shapes: Shapes, axes: Sequence[int] | None = None, *, where: str = "transformer"
) -> FluxSpec:
    """Widths and depths from the shapes of a file in either layout, without a prefix.

    The widths are those that most tensors agree on, and what no tensor tells is as in
    FLUX.1-dev: whoever builds the model compares every tensor, and names those at fault.
    """
    usual = FluxSpec()
    width = most_common(_rows(shapes, WIDTH), usual.width)
    head = most_common(_rows(shapes, HEAD), usual.width // usual.heads)
    fused = (rows - 3 * width for rows in _rows(shapes, FUSED))
    if width % head:
        raise CheckpointError(where, reason=f"width {width} in heads of {head}")
    return FluxSpec(
        width=width,
        heads=width // head,
        axes=_axes(head, axes, where),
        inner=most_common([*_rows(shapes, INNER), *fused], usual.inner),
        double_blocks=_depth(shapes, "double_blocks", "transformer_blocks"),
        single_blocks=_depth(shapes, "single_blocks", "single_transformer_blocks"),
        channels_in=_columns(shapes, usual.channels_in, "img_in", "x_embedder"),
        channels_out=most_common(_rows(shapes, OUT), usual.channels_out),
        text_width=_columns(shapes, usual.text_width, "txt_in", "context_embedder"),
        pooled_width=_columns(
            shapes,
            usual.pooled_width,
            "vector_in.in_layer",
            "time_text_embed.text_embedder.linear_1",
        ),
        guidance=any("guidance_in." in key or ".guidance_embedder." in key for key in shapes),
    )


def transformer_blueprint(
    shapes: Shapes, where: str, layout: str, axes: Sequence[int] | None = None
) -> Blueprint:
    spec = flux_spec(shapes, axes, where=where)
    with torch.device("meta"):
        model = FluxTransformer(spec)
    return Blueprint(layout, "dit", model, transformer_recipes(spec, layout))


def transformer_recipes(spec: FluxSpec, layout: str) -> dict[str, Recipe]:
    """Where files of this layout keep each parameter."""
    with torch.device("meta"):
        model = FluxTransformer(spec)
    return {
        name: as_stored(name, tensor.shape)
        if layout == BFL
        else _from_diffusers(name, tensor.shape, spec)
        for name, tensor in model.state_dict().items()
    }


def _from_diffusers(name: str, shape: Sequence[int], spec: FluxSpec) -> Recipe:
    part, _, leaf = name.rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    stack, _, rest = part.partition(".")
    if stack in BLOCKS:
        theirs, parts = BLOCKS[stack]
        number, _, inside = rest.partition(".")
        keys = [f"{theirs}.{number}.{piece}.{leaf}" for piece in parts[inside]]
    else:
        keys = [f"{piece}.{leaf}" for piece in OUTSIDE[part]]
    if part == SWAPPED:
        return halves_swapped(keys[0], shape)
    if len(keys) == 1:
        return as_stored(keys[0], shape)
    return stacked(keys, [spec.width] * 3 + [spec.inner] * (len(keys) - 3), shape)


def _axes(head: int, axes: Sequence[int] | None, where: str) -> tuple[int, ...]:
    if axes is None:
        eighth = head / 8
        axes = [int(eighth), int(7 * head / 16), int(7 * head / 16)]
        if eighth % 2 or (7 * head / 16) % 2:
            raise CheckpointError(
                where,
                reason=f"heads of {head} do not split into even axes of 1/8, 7/16 and 7/16: "
                "give the axes of the rotary positions",
            )
    if sum(axes) != head or any(axis <= 0 or axis % 2 for axis in axes):
        raise CheckpointError(
            where, reason=f"axes {tuple(axes)} are not even, or are not {head} in sum"
        )
    return tuple(axes)


def _rows(shapes: Shapes, pattern: re.Pattern[str]) -> Iterable[int]:
    return [info.shape[0] for key, info in shapes.items() if pattern.fullmatch(key) and info.shape]


def _columns(shapes: Shapes, default: int, *names: str) -> int:
    found = (shapes[f"{name}.weight"].shape for name in names if f"{name}.weight" in shapes)
    return most_common((shape[1] for shape in found if len(shape) == 2), default)


def _depth(shapes: Shapes, *stacks: str) -> int:
    pattern = re.compile(rf"(?:{'|'.join(stacks)})\.(\d+)\..*")
    found = (pattern.fullmatch(key) for key in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)
