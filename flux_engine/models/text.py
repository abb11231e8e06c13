"""The text encoders and their tokenizers: the only door to transformers for them.

Shape letters: B batch, T tokens, D hidden width. Attention is PyTorch's
`scaled_dot_product_attention`, or transformers' eager code where its release has no other for
a model; neither is given a padding mask, so a row's output does not depend on its neighbours
as long as the batch keeps its shape.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from flux_engine.errors import CheckpointError, SourceError

# published with FLUX.1 as text_encoder/config.json and text_encoder_2/config.json
CLIP_L: Mapping[str, Any] = {
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
T5_XXL: Mapping[str, Any] = {
    "model_type": "t5",
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "num_heads": 64,
    "num_layers": 24,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}


@dataclass(frozen=True)
class Tokens:
    """Token ids, (B, T), padded; and how many tokens of each prompt did not fit."""

    ids_BT: Tensor
    dropped: tuple[int, ...]

    @property
    def truncated(self) -> tuple[bool, ...]:
        return tuple(count > 0 for count in self.dropped)


def read_config(path: Path, kind: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` of the same kind of model as `kind` (`CLIP_L` or `T5_XXL`)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), reason=f"unreadable: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(str(path), reason="not a JSON object")
    if values.get("model_type") == "clip" and isinstance(values.get("text_config"), dict):
        values = {"model_type": "clip_text_model", **values["text_config"]}
    if values.get("model_type") != kind["model_type"]:
        raise CheckpointError(
            str(path),
            reason=f"model_type is {values.get('model_type')!r}, not {kind['model_type']!r}",
        )
    return values


def build_clip(config: Mapping[str, Any]) -> nn.Module:
    """CLIP's text model, on whatever device is current, with random weights."""
    return _build(CLIPTextModel, CLIPTextConfig, config)


def build_t5(config: Mapping[str, Any]) -> nn.Module:
    """T5's encoder, on whatever device is current, with random weights."""
    return _build(T5EncoderModel, T5Config, config)


def fill_constants(clip: nn.Module, device: torch.device | str) -> None:
    """Give a CLIP that was built on the meta device the position numbers that no file holds."""
    for module in clip.modules():
        for name, buffer in module.named_buffers(recurse=False):
            assert name == "position_ids", name
            module.register_buffer(
                name, torch.arange(buffer.shape[-1], device=device)[None], persistent=False
            )


def tie_embeddings(t5: nn.Module) -> None:
    """Let T5's encoder look its tokens up in `shared`, so that the table exists once."""
    t5.set_input_embeddings(t5.shared)  # type: ignore[operator]


def output_width(encoder: nn.Module) -> int:
    """Channels of what an encoder of either kind says."""
    return int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer whose files lie in `folder`; nothing is fetched, none of its code is run."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise SourceError(f"{folder}: no tokenizer here")
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        there = ", ".join(sorted(file.name for file in folder.iterdir()))
        raise SourceError(f"{folder}: no usable tokenizer among {there}: {error}") from error


def tokenise(tokenizer: Any, prompts: Sequence[str], length: int) -> Tokens:
    """Prompts into ids of one length, padded or cut at the end."""
    whole = tokenizer(list(prompts), padding=False, truncation=False, verbose=False)["input_ids"]
    padded = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )["input_ids"]
    return Tokens(padded, tuple(max(0, len(ids) - length) for ids in whole))


def clip_pooled(clip: nn.Module, ids_BT: Tensor) -> Tensor:
    """One vector a prompt, (B, D): the normed state of its end token. Causal mask only."""
    with torch.no_grad():
        pooled_BD: Tensor = clip(input_ids=ids_BT).pooler_output
    return pooled_BD


def t5_states(t5: nn.Module, ids_BT: Tensor) -> Tensor:
    """The last states of all tokens, (B, T, D); padding attends and is attended to."""
    with torch.no_grad():
        states_BTD: Tensor = t5(input_ids=ids_BT).last_hidden_state
    return states_BTD


def _build(model_class: Any, config_class: Any, config: Mapping[str, Any]) -> nn.Module:
    known = {key: value for key, value in config.items() if key not in _NOT_OURS}
    try:
        parsed = config_class.from_dict(known)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError("config.json", reason=str(error)) from error
    parsed._attn_implementation = "sdpa" if model_class._supports_sdpa else "eager"
    model: nn.Module = model_class(parsed)
    return model.eval().requires_grad_(requires_grad=False)


# of the saved file: types and provenance, which are ours to choose
_NOT_OURS = frozenset({"torch_dtype", "dtype", "transformers_version", "_name_or_path"})
