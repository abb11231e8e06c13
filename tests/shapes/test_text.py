"""The frozen encoders are in the published layout and tell captions apart."""

import json
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from shapes.recipe import ONE, TWO, Recipe
from shapes.text import (
    CLIP_PREFIX,
    clip_ids,
    parts,
    sample_captions,
    t5_ids,
    write_text,
)
from shapes.vocabulary import write_t5_tokenizer
from shapes.world import keyed


class TextEncoders:
    """Prompts into what the transformer reads, as the engine does it: padded and unmasked."""

    def __init__(self, folder: Path, clip: Any, t5: Any, length: int) -> None:
        self.folder, self.clip, self.t5, self.length = folder, clip, t5, length

    @classmethod
    def load(cls, folder: Path, length: int) -> Self:
        from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

        clip = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        t5 = T5EncoderModel(T5Config.from_pretrained(folder / "text_encoder_2"))
        state = load_file(folder / "text_encoder" / "model.safetensors")
        bare = {k.removeprefix(CLIP_PREFIX): v for k, v in state.items()}
        parts(clip).load_state_dict(bare, strict=False)
        t5.load_state_dict(load_file(folder / "text_encoder_2" / "model.safetensors"), strict=False)
        return cls(folder, clip.float().eval(), t5.float().eval(), length)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Sequence (N, T, W) and pooled vector (N, W) of each prompt."""
        sequence = self.t5(input_ids=t5_ids(self.folder, prompts, self.length)).last_hidden_state
        pooled = self.clip(input_ids=clip_ids(self.folder, prompts)).pooler_output
        return sequence, pooled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    write_text(path, ONE, seed=0)
    return path


@pytest.fixture(scope="module")
def encoders(folder: Path) -> TextEncoders:
    return TextEncoders.load(folder, ONE.text_length)


def keys(folder: Path, part: str) -> set[str]:
    with safe_open(folder / part / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_keys_are_the_published_ones(folder: Path) -> None:
    assert all(key.startswith(CLIP_PREFIX) for key in keys(folder, "text_encoder"))
    t5 = keys(folder, "text_encoder_2")
    assert "shared.weight" in t5
    assert "encoder.embed_tokens.weight" not in t5


def test_the_library_loads_them_with_nothing_missing(folder: Path) -> None:
    from transformers import CLIPTextModel, T5EncoderModel

    for kind, part in ((CLIPTextModel, "text_encoder"), (T5EncoderModel, "text_encoder_2")):
        _, found = kind.from_pretrained(folder / part, output_loading_info=True)
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]


def test_the_end_of_text_is_the_largest_index(folder: Path) -> None:
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    assert config["eos_token_id"] == config["vocab_size"] - 1


def test_outputs_are_of_unit_spread(encoders: TextEncoders) -> None:
    sequence, pooled = encoders(sample_captions(ONE.world))
    assert abs(sequence.square().mean().sqrt().item() - 1) < 0.05
    assert (pooled.std(0) - 1).abs().max() < 0.1


def test_the_same_words_mean_the_same_in_every_spelling(encoders: TextEncoders) -> None:
    sequence, pooled = encoders(["a small red circle", "A Small RED circle"])
    torch.testing.assert_close(sequence[0], sequence[1])
    torch.testing.assert_close(pooled[0], pooled[1])


def test_one_changed_word_changes_both_outputs(encoders: TextEncoders) -> None:
    sequence, pooled = encoders(["a small red circle", "a small red square"])
    assert (sequence[0] - sequence[1]).abs().max() > 0.5
    assert (pooled[0] - pooled[1]).abs().max() > 0.05


def test_an_empty_prompt_and_unknown_words_are_encoded(encoders: TextEncoders) -> None:
    sequence, pooled = encoders(["", "größer 你好"])
    assert sequence.shape == (2, ONE.text_length, 64)
    assert sequence.isfinite().all()
    assert pooled.isfinite().all()


@pytest.mark.parametrize("recipe", [ONE, TWO])
def test_every_caption_fits(tmp_path: Path, recipe: Recipe) -> None:
    world = recipe.world
    write_t5_tokenizer(tmp_path / "tokenizer_2", world.words())
    rows = world.some(400, keyed("captions"))
    captions = [world.caption(row, i) for row in rows for i in range(len(world.templates))]
    ids = t5_ids(tmp_path, captions, recipe.text_length)
    assert (ids[:, -4:] == 0).all()  # padding


def test_every_spelling_of_a_caption_of_the_second_world_is_different(tmp_path: Path) -> None:
    write_text(tmp_path, TWO, seed=0)
    row = TWO.world.some(1, keyed("row"))[0]
    opposite = row.clone()
    opposite[3] ^= 1
    texts = [TWO.world.caption(each, i) for each in (row, opposite) for i in range(4)]
    sequence, _ = TextEncoders.load(tmp_path, TWO.text_length)(texts)
    apart = torch.cdist(sequence.flatten(1), sequence.flatten(1))
    assert (apart + torch.eye(len(texts)) * 100).min() > 1
