"""The text half of the model folder: two tokenizers and two frozen encoders of random weights.

Random is enough: the transformer learns to read whatever the encoders say, so long as different
captions come out different. Shape letters: N captions, T tokens, W width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shapes.recipe import TEXT_WIDTH as WIDTH
from shapes.recipe import Recipe
from shapes.vocabulary import (
    CLIP_LENGTH,
    EOS,
    PAD,
    START,
    clip_pieces,
    t5_pieces,
    write_clip_tokenizer,
    write_t5_tokenizer,
)
from shapes.world import World, keyed

HEADS, INNER, LAYERS = 4, 128, 2
CLIP_PREFIX = "text_model."
GAIN = 4.0  # of CLIP's initial weights: the library's own leave all captions alike


def write_text(folder: Path, recipe: Recipe, seed: int) -> None:
    """`tokenizer`, `tokenizer_2`, `text_encoder` and `text_encoder_2`, as FLUX.1's folders."""
    words, captions = recipe.world.words(), sample_captions(recipe.world)
    write_clip_tokenizer(folder / "tokenizer", words)
    write_t5_tokenizer(folder / "tokenizer_2", words)
    write_clip(folder, clip_pieces(words), clip_ids(folder, captions), seed)
    write_t5(folder, t5_pieces(words), t5_ids(folder, captions, recipe.text_length), seed)


def sample_captions(world: World) -> list[str]:
    """512 captions of all templates, to measure the encoders with."""
    return [world.caption(row, i) for i, row in enumerate(world.some(512, keyed("captions")))]


@torch.no_grad()
def write_clip(folder: Path, pieces: list[str], ids: Tensor, seed: int) -> None:
    """Random CLIP whose last norm standardises every feature over some captions' tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=WIDTH, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, projection_dim=WIDTH,
        max_position_embeddings=CLIP_LENGTH, initializer_factor=GAIN,
        bos_token_id=pieces.index(START), eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )  # fmt: skip
    clip = CLIPTextModel(config).eval()
    norm = parts(clip).final_layer_norm
    pooled = clip(input_ids=ids).pooler_output
    norm.weight.copy_(1 / pooled.std(0))
    norm.bias.copy_(-pooled.mean(0) / pooled.std(0))
    state = {CLIP_PREFIX + k.removeprefix(CLIP_PREFIX): v for k, v in clip.state_dict().items()}
    write_model(folder / "text_encoder", config, "CLIPTextModel", state)


@torch.no_grad()
def write_t5(folder: Path, pieces: list[tuple[str, str]], ids: Tensor, seed: int) -> None:
    """Random T5 encoder in which a word means the same in every spelling."""
    from transformers import T5Config, T5EncoderModel

    index = {piece: i for i, (piece, _) in enumerate(pieces)}
    torch.manual_seed(seed + 1)
    config = T5Config(
        vocab_size=len(pieces), d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=INNER,
        num_layers=LAYERS, num_heads=HEADS, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        pad_token_id=index[PAD], eos_token_id=index[EOS], is_encoder_decoder=False,
        use_cache=False,
    )  # fmt: skip
    t5 = T5EncoderModel(config).eval()
    table = t5.shared.weight
    table.copy_(table[[index[meaning] for _, meaning in pieces]].clone())
    sequence = t5(input_ids=ids).last_hidden_state
    t5.encoder.final_layer_norm.weight.div_(sequence.square().mean().sqrt())
    state = {k: v for k, v in t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    write_model(folder / "text_encoder_2", config, "T5EncoderModel", state)


def write_model(folder: Path, config: Any, kind: str, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {**config.to_diff_dict(), "architectures": [kind], "dtype": "bfloat16"}
    text = json.dumps(values, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")
    floats = {
        k: v.to(torch.bfloat16).contiguous() for k, v in state.items() if v.is_floating_point()
    }
    save_file(floats, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


def clip_ids(folder: Path, prompts: list[str]) -> Tensor:
    return token_ids(folder / "tokenizer", prompts, CLIP_LENGTH)


def t5_ids(folder: Path, prompts: list[str], length: int) -> Tensor:
    return token_ids(folder / "tokenizer_2", prompts, length)


def token_ids(tokenizer: Path, prompts: list[str], length: int) -> Tensor:
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    ids: Tensor = encode(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )["input_ids"]
    return ids


def parts(clip: Any) -> Any:
    """The transformer inside CLIPTextModel, which older releases nest one level deeper."""
    return getattr(clip, "text_model", clip)
