"""LoRAs for the bundled model, which is small enough to wear them in a test."""

from collections.abc import Callable
from pathlib import Path

from flux_engine import FluxEngine
from flux_engine.request import LoraUse
from tests.flux_engine.weights.lora.written import A, B, Drawn, World, bfl, dotted, low_rank


def file_of(
    folder: Path,
    engine: FluxEngine,
    seed: int = 0,
    *,
    world: World = bfl,
    only: Callable[[str], bool] = bool,
    strength: float = 0.05,
) -> Path:
    """A LoRA on every layer; another seed makes another one of the same shape."""
    drawn = low_rank(world, engine.dit.spec, dotted("diffusion_model."), A, B, only=only)
    for key in drawn.tensors:
        drawn.tensors[key] = strength * (drawn.tensors[key] + 0.1 * seed).roll(seed)
    return drawn.save(folder, f"lora{seed}.safetensors")


def dense_file(folder: Path, engine: FluxEngine) -> Path:
    """Differences of a weight, a bias and a norm."""
    drawn, spec = Drawn(), engine.dit.spec
    width = spec.width
    drawn.tensor("diffusion_model.double_blocks.0.img_attn.proj.diff", width, width, std=0.05)
    drawn.tensor("diffusion_model.txt_in.diff_b", width, std=0.1)
    drawn.tensor(
        "diffusion_model.single_blocks.0.norm.query_norm.scale", width // spec.heads, std=0.1
    )
    return drawn.save(folder, "dense.safetensors")


def encoder_file(folder: Path, engine: FluxEngine, seed: int = 0) -> Path:
    """Changes of both text encoders, and of nothing else."""
    drawn, text = Drawn(), engine.text.models
    clip, t5 = text.clip.config, text.t5.config
    for name, rows, columns in (
        ("lora_te1_text_model_encoder_layers_0_self_attn_v_proj", *[clip.hidden_size] * 2),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_v", t5.num_heads * t5.d_kv, t5.d_model),
    ):
        drawn.tensor(f"{name}.lora_down.weight", 2, columns, std=0.3).add_(seed)
        drawn.tensor(f"{name}.lora_up.weight", rows, 2, std=0.3)
    return drawn.save(folder, f"encoders{seed}.safetensors")


def use(file: Path, scale: float = 1.0, *, merged: bool | None = None) -> LoraUse:
    return LoraUse(path=str(file), scale=scale, merged=merged)
