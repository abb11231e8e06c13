"""The frozen encoders are in the published layout and tell captions apart."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shapes.text import (
    CLIP_PREFIX,
    SEQUENCE_LENGTH,
    TextEncoders,
    sample_captions,
    t5_ids,
    write_text,
)
from shapes.world import TEMPLATES, caption, combinations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    write_text(path, seed=0)
    return path


@pytest.fixture(scope="module")
def encoders(folder: Path) -> TextEncoders:
    return TextEncoders.load(folder)


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
    sequence, pooled = encoders(sample_captions())
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
    assert sequence.shape == (2, SEQUENCE_LENGTH, 64)
    assert sequence.isfinite().all()
    assert pooled.isfinite().all()


def test_every_caption_fits(folder: Path) -> None:
    rows = combinations()
    longest = {max((caption(row, i) for row in rows), key=len): i for i in range(len(TEMPLATES))}
    ids = t5_ids(folder, list(longest))
    assert (ids[:, -4:] == 0).all()  # padding
