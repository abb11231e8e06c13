"""Published weights under the names that diffusers gives them."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
FUSED = {
    "img_attn.qkv": QKV,
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": (*QKV, "proj_mlp"),
}
TRANSFORMER: Rules = (
    (r"^img_in\.", "x_embedder."),
    (r"^txt_in\.", "context_embedder."),
    (r"^time_in\.", "time_text_embed.timestep_embedder."),
    (r"^vector_in\.", "time_text_embed.text_embedder."),
    (r"^guidance_in\.", "time_text_embed.guidance_embedder."),
    (r"\.in_layer\.", ".linear_1."),
    (r"\.out_layer\.", ".linear_2."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"\.img_mod\.lin\.", ".norm1.linear."),
    (r"\.txt_mod\.lin\.", ".norm1_context.linear."),
    (r"\.img_attn\.norm\.(query|key)_norm\.scale", r".attn.norm_\1.weight"),
    (r"\.txt_attn\.norm\.(query|key)_norm\.scale", r".attn.norm_added_\1.weight"),
    (r"\.img_attn\.proj\.", ".attn.to_out.0."),
    (r"\.txt_attn\.proj\.", ".attn.to_add_out."),
    (r"\.img_mlp\.0\.", ".ff.net.0.proj."),
    (r"\.img_mlp\.2\.", ".ff.net.2."),
    (r"\.txt_mlp\.0\.", ".ff_context.net.0.proj."),
    (r"\.txt_mlp\.2\.", ".ff_context.net.2."),
    (r"\.modulation\.lin\.", ".norm.linear."),
    (r"\.linear2\.", ".proj_out."),
    (r"\.norm\.(query|key)_norm\.scale", r".attn.norm_\1.weight"),
    (r"_query\.weight", "_q.weight"),
    (r"_key\.weight", "_k.weight"),
    (r"^single_blocks\.", "single_transformer_blocks."),
    (r"^double_blocks\.", "transformer_blocks."),
)
AUTOENCODER: Rules = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.(down|up)\.(\d)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)


def renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def unfused(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys, values and, in single blocks, the MLP's first layer, each on its own."""
    width = len(weights["img_in.bias"])
    fused = re.compile(rf"(\w+\.\d+)\.({'|'.join(map(re.escape, FUSED))})\.(\w+)")
    for name, tensor in weights.items():
        if match := fused.fullmatch(name):
            block, layer, kind = match.groups()
            targets = FUSED[layer]
            sizes = [width] * 3 + [len(tensor) - 3 * width] * (len(targets) - 3)
            for target, rows in zip(targets, tensor.split(sizes), strict=True):
                yield f"{block}.{target}.{kind}", rows
        else:
            yield name, tensor


def transformer(weights: Weights) -> Weights:
    out = {renamed(name, TRANSFORMER): tensor for name, tensor in unfused(weights)}
    for kind in ("weight", "bias"):  # published: shift, scale; diffusers: scale, shift
        shift, scale = out[f"norm_out.linear.{kind}"].chunk(2)
        out[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
    return out


def autoencoder(weights: Weights) -> Weights:
    """1×1 convolutions of the attention become linear layers; decoder levels are counted down."""
    levels = len({name.split(".")[2] for name in weights if name.startswith("decoder.up.")})
    out = {}
    for name, tensor in weights.items():
        if ".attn_1." in name and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        name = re.sub(r"(?<=\.up\.)\d", lambda m: str(levels - 1 - int(m[0])), name)
        out[renamed(name, AUTOENCODER)] = tensor
    return out
