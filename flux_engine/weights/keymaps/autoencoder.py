"""FLUX autoencoders under their two sets of names: as published (BFL), and diffusers'."""

import re
from collections.abc import Sequence

import torch

from flux_engine.errors import CheckpointError
from flux_engine.models.vae import GROUPS, AutoEncoder, VaeSpec
from flux_engine.weights.keymaps.recipe import Blueprint, Recipe, as_stored, reshaped
from flux_engine.weights.stored import Shapes, most_common

BFL, DIFFUSERS = "BFL autoencoder", "diffusers autoencoder"

# ours (BFL's) → diffusers', in this order
RENAMED = (
    (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up_blocks\.(\d+)\.block\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
    (r"\.up_blocks\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
MATRIX = re.compile(r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
DOWN = re.compile(
    r"encoder\.(?:down\.(\d+)\.block|down_blocks\.(\d+)\.resnets)\.(\d+)\.(?:norm2|conv2)\.\w+"
)
UP = re.compile(
    r"decoder\.(?:up\.(\d+)\.block|up_blocks\.(\d+)\.resnets)\.(\d+)\.(?:norm2|conv2)\.\w+"
)


def is_bfl(key: str) -> bool:
    return key.startswith(("encoder.down.", "decoder.up.", "encoder.mid.", "decoder.mid."))


def is_diffusers(key: str) -> bool:
    return key.startswith(
        ("encoder.down_blocks.", "decoder.up_blocks.", "encoder.mid_block.", "decoder.mid_block.")
    )


def vae_spec(shapes: Shapes, *, where: str = "autoencoder") -> VaeSpec:
    """Widths and depths from the shapes of a file in either layout, read as `flux_spec` does."""
    usual = VaeSpec()
    down = [(match, info) for key, info in shapes.items() if (match := DOWN.fullmatch(key))]
    levels: dict[int, list[int]] = {}
    for match, info in down:
        levels.setdefault(int(match[1] or match[2]), []).append(info.shape[0])
    widths = tuple(most_common(levels.get(i, []), 0) for i in range(max(levels, default=-1) + 1))
    if any(width % GROUPS or not width for width in widths):
        raise CheckpointError(where, reason=f"widths by level {widths}: not multiples of {GROUPS}")
    latent = [info.shape[1] for key, info in shapes.items() if key == "decoder.conv_in.weight"] + [
        info.shape[0] // 2 for key, info in shapes.items() if key == "encoder.conv_out.bias"
    ]
    ups = [int(match[3]) + 1 for key in shapes if (match := UP.fullmatch(key))]
    return VaeSpec(
        widths=widths or usual.widths,
        latent_channels=most_common(latent, usual.latent_channels),
        encoder_blocks=max((int(match[3]) + 1 for match, _ in down), default=usual.encoder_blocks),
        decoder_blocks=max(ups, default=usual.decoder_blocks),
    )


def autoencoder_blueprint(shapes: Shapes, where: str, layout: str) -> Blueprint:
    spec = vae_spec(shapes, where=where)
    with torch.device("meta"):
        model = AutoEncoder(spec)
    recipes = {
        name: as_stored(name, tensor.shape)
        if layout == BFL
        else _from_diffusers(name, tensor.shape, len(spec.widths))
        for name, tensor in model.state_dict().items()
    }
    return Blueprint(layout, "vae", model, recipes)


def _from_diffusers(name: str, shape: Sequence[int], levels: int) -> Recipe:
    # the decoder's blocks count from the coarsest level there, from the finest here
    key = re.sub(r"\.up\.(\d+)\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.", name)
    for ours, theirs in RENAMED:
        key = re.sub(ours, theirs, key)
    if MATRIX.fullmatch(name):
        return reshaped(key, shape[:2], shape)
    return as_stored(key, shape)
