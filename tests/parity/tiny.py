"""FLUX.1 at toy width: seeded weights under the published names, written as the published folder.

Every weight is drawn from a generator seeded with its own name, so adding, dropping or reordering
tensors changes no other one. Names and shapes are spelled out here and not read off our modules:
a renamed parameter has to fail.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flux_engine.models.dit import FluxSpec
from flux_engine.models.vae import VaeSpec
from tests.parity import tiny_tokenizers

T5_TOKENS = 32  # text length that the cases run at; one of the prompts is longer

# published with the weights: the autoencoder's, its norms', the rotary positions'
SCALE, SHIFT = 0.3611, 0.1159
GROUPS, EPS = 32, 1e-6
THETA = 10000.0

TINY_VAE = VaeSpec(widths=(32, 32, 64, 64))

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TextSpec:
    """Sizes of one text encoder."""

    width: int = 64
    inner: int = 128
    heads: int = 4
    layers: int = 2


@dataclass(frozen=True)
class TinySpec:
    """One toy model; `guidance` tells FLUX.1-dev's kind from FLUX.1-schnell's."""

    guidance: bool = True
    seed: int = 20240801
    clip: TextSpec = TextSpec(layers=3)
    t5: TextSpec = TextSpec()
    vae: VaeSpec = TINY_VAE

    @property
    def flux(self) -> FluxSpec:
        return FluxSpec(
            width=128, heads=4, axes=(4, 14, 14), inner=512, double_blocks=2, single_blocks=3,
            text_width=self.t5.width, pooled_width=self.clip.width, guidance=self.guidance,
        )  # fmt: skip


class Draw:
    """Fills a dict with tensors that are functions of the seed and their name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.weights: Weights = {}

    def normal(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(self.seed ^ zlib.crc32(name.encode()))
        self.weights[name] = mean + std * torch.randn(shape, generator=generator)

    def linear(
        self,
        name: str,
        c_in: int,
        c_out: int,
        *,
        side: int = 0,
        gain: float = 1.0,
        bias: bool = True,
    ) -> None:
        """A linear layer, or with `side` a convolution; `gain` 1 keeps the input's variance."""
        shape = (c_out, c_in, side, side) if side else (c_out, c_in)
        self.normal(f"{name}.weight", *shape, std=gain / (c_in * max(side, 1) ** 2) ** 0.5)
        if bias:
            self.normal(f"{name}.bias", c_out, std=0.05)

    def norm(self, name: str, width: int, *, scale: str = "weight", bias: bool = True) -> None:
        self.normal(f"{name}.{scale}", width, std=0.1, mean=1.0)
        if bias:
            self.normal(f"{name}.bias", width, std=0.1)


def transformer_weights(spec: TinySpec) -> Weights:
    """The transformer as Black Forest Labs name it."""
    draw, flux = Draw(spec.seed), spec.flux
    width, inner, head = flux.width, flux.inner, flux.width // flux.heads

    def qk_norm(name: str) -> None:
        draw.norm(f"{name}.query_norm", head, scale="scale", bias=False)
        draw.norm(f"{name}.key_norm", head, scale="scale", bias=False)

    draw.linear("img_in", flux.channels_in, width)
    draw.linear("txt_in", flux.text_width, width)
    embedders = {"time_in": 256, "vector_in": flux.pooled_width}
    if spec.guidance:
        embedders["guidance_in"] = 256
    for name, c_in in embedders.items():
        draw.linear(f"{name}.in_layer", c_in, width)
        draw.linear(f"{name}.out_layer", width, width)
    for i in range(flux.double_blocks):
        for stream in ("img", "txt"):
            name = f"double_blocks.{i}.{stream}"
            draw.linear(f"{name}_mod.lin", width, 6 * width, gain=0.4)
            draw.linear(f"{name}_attn.qkv", width, 3 * width)
            qk_norm(f"{name}_attn.norm")
            draw.linear(f"{name}_attn.proj", width, width)
            draw.linear(f"{name}_mlp.0", width, inner)
            draw.linear(f"{name}_mlp.2", inner, width)
    for i in range(flux.single_blocks):
        name = f"single_blocks.{i}"
        draw.linear(f"{name}.modulation.lin", width, 3 * width, gain=0.4)
        draw.linear(f"{name}.linear1", width, 3 * width + inner)
        draw.linear(f"{name}.linear2", width + inner, width)
        qk_norm(f"{name}.norm")
    draw.linear("final_layer.adaLN_modulation.1", width, 2 * width, gain=0.4)
    draw.linear("final_layer.linear", width, flux.channels_out)
    return draw.weights


def autoencoder_weights(spec: TinySpec) -> Weights:
    """Encoder and decoder as in the published `ae.safetensors`."""
    draw, vae = Draw(spec.seed + 1), spec.vae
    widths, top, last = vae.widths, vae.widths[-1], len(vae.widths) - 1

    def block(name: str, c_in: int, c_out: int) -> None:
        draw.norm(f"{name}.norm1", c_in)
        draw.linear(f"{name}.conv1", c_in, c_out, side=3)
        draw.norm(f"{name}.norm2", c_out)
        draw.linear(f"{name}.conv2", c_out, c_out, side=3)
        if c_in != c_out:
            draw.linear(f"{name}.nin_shortcut", c_in, c_out, side=1)

    def ends(half: str, c_in: int, first: int, final: int, c_out: int) -> None:
        draw.linear(f"{half}.conv_in", c_in, first, side=3)
        block(f"{half}.mid.block_1", top, top)
        draw.norm(f"{half}.mid.attn_1.norm", top)
        for part in ("q", "k", "v", "proj_out"):
            draw.linear(f"{half}.mid.attn_1.{part}", top, top, side=1)
        block(f"{half}.mid.block_2", top, top)
        draw.norm(f"{half}.norm_out", final)
        draw.linear(f"{half}.conv_out", final, c_out, side=3)

    ends("encoder", 3, widths[0], top, 2 * vae.latent_channels)
    ends("decoder", vae.latent_channels, top, widths[0], 3)
    for i, width in enumerate(widths):
        coarser, finer = widths[min(i + 1, last)], widths[max(i - 1, 0)]
        for k in range(vae.encoder_blocks):
            block(f"encoder.down.{i}.block.{k}", width if k else finer, width)
        for k in range(vae.decoder_blocks):
            block(f"decoder.up.{i}.block.{k}", width if k else coarser, width)
        if i < last:
            draw.linear(f"encoder.down.{i}.downsample.conv", width, width, side=3)
        if i > 0:
            draw.linear(f"decoder.up.{i}.upsample.conv", width, width, side=3)
    return draw.weights


def clip_weights(spec: TinySpec) -> Weights:
    """CLIP's text half as transformers names it, with the published prefix."""
    draw, clip = Draw(spec.seed + 2), spec.clip
    embeddings = "text_model.embeddings"
    draw.normal(f"{embeddings}.token_embedding.weight", tiny_tokenizers.CLIP_VOCAB, clip.width)
    draw.normal(f"{embeddings}.position_embedding.weight", 77, clip.width, std=0.3)
    for i in range(clip.layers):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            draw.linear(f"{layer}.self_attn.{part}", clip.width, clip.width)
        draw.norm(f"{layer}.layer_norm1", clip.width)
        draw.norm(f"{layer}.layer_norm2", clip.width)
        draw.linear(f"{layer}.mlp.fc1", clip.width, clip.inner)
        draw.linear(f"{layer}.mlp.fc2", clip.inner, clip.width)
    draw.norm("text_model.final_layer_norm", clip.width)
    return draw.weights


def t5_weights(spec: TinySpec) -> Weights:
    """T5's encoder as transformers names it; the embedding stands there once, as `shared`."""
    draw, t5 = Draw(spec.seed + 3), spec.t5
    draw.normal("shared.weight", tiny_tokenizers.T5_VOCAB, t5.width)
    draw.normal(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 32, t5.heads
    )
    for i in range(t5.layers):
        attention, mlp = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        # T5 does not divide its logits by the head width's root: its query weights do
        draw.linear(f"{attention}.SelfAttention.q", t5.width, t5.width, gain=0.25, bias=False)
        for part in "kvo":
            draw.linear(f"{attention}.SelfAttention.{part}", t5.width, t5.width, bias=False)
        draw.norm(f"{attention}.layer_norm", t5.width, bias=False)
        draw.linear(f"{mlp}.DenseReluDense.wi_0", t5.width, t5.inner, bias=False)
        draw.linear(f"{mlp}.DenseReluDense.wi_1", t5.width, t5.inner, bias=False)
        draw.linear(f"{mlp}.DenseReluDense.wo", t5.inner, t5.width, bias=False)
        draw.norm(f"{mlp}.layer_norm", t5.width, bias=False)
    draw.norm("encoder.final_layer_norm", t5.width, bias=False)
    return draw.weights


def clip_config(spec: TinySpec) -> dict[str, object]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "hidden_size": spec.clip.width,
        "intermediate_size": spec.clip.inner,
        "num_attention_heads": spec.clip.heads,
        "num_hidden_layers": spec.clip.layers,
        "projection_dim": spec.clip.width,
        "max_position_embeddings": 77,
        "layer_norm_eps": 1e-05,
        "vocab_size": tiny_tokenizers.CLIP_VOCAB,
        "bos_token_id": tiny_tokenizers.CLIP_VOCAB - 2,
        "eos_token_id": tiny_tokenizers.CLIP_VOCAB - 1,
        "pad_token_id": tiny_tokenizers.CLIP_VOCAB - 1,
        "torch_dtype": "float32",
    }


def t5_config(spec: TinySpec) -> dict[str, object]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": spec.t5.width,
        "d_ff": spec.t5.inner,
        "d_kv": spec.t5.width // spec.t5.heads,
        "num_heads": spec.t5.heads,
        "num_layers": spec.t5.layers,
        "num_decoder_layers": spec.t5.layers,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "dropout_rate": 0.1,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": tiny_tokenizers.T5_VOCAB,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


def scheduler_config(spec: TinySpec) -> dict[str, object]:
    """As published with FLUX.1-dev, or with FLUX.1-schnell."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0 if spec.guidance else 1.0,
        "use_dynamic_shifting": spec.guidance,
    }


def text_encoders(spec: TinySpec) -> Iterator[tuple[str, dict[str, object], Weights]]:
    """Folder, config and weights of each text encoder."""
    yield "text_encoder", clip_config(spec), clip_weights(spec)
    yield "text_encoder_2", t5_config(spec), t5_weights(spec)


def write_json(path: Path, values: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2))


def write_folder(path: Path, spec: TinySpec) -> Path:
    """`path` as a repository of FLUX.1-dev on disk, in float32; returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(transformer_weights(spec), path / "flux1-tiny.safetensors")
    save_file(autoencoder_weights(spec), path / "ae.safetensors")
    for name, config, weights in text_encoders(spec):
        write_json(path / name / "config.json", config)
        save_file(weights, path / name / "model.safetensors", metadata={"format": "pt"})
    write_json(path / "scheduler" / "scheduler_config.json", scheduler_config(spec))
    tiny_tokenizers.write_clip(path / "tokenizer")
    tiny_tokenizers.write_t5(path / "tokenizer_2")
    return path
