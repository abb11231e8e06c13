"""Captions are encoded once on each host."""

import shutil
from pathlib import Path

import pytest
import torch

from batch.targets.dataset import TargetDataset
from batch.targets.text import TextError
from batch.training.models import ModelParts
from batch.training.texts import Texts
from flux_engine.defaults import model_folder
from flux_engine.encode import TextModels
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson

CPU = torch.device("cpu")
KEYS = [("a large red circle", 16), ("", 16), ("a small blue square", 16)]


@pytest.fixture
def parts(tmp_path: Path, targets: Targets) -> ModelParts:
    return ModelParts(lesson(tmp_path, targets("cache")))


def never() -> TextModels:
    raise AssertionError("the encoders were loaded")


def test_each_distinct_caption_is_encoded_once_and_found_again(
    tmp_path: Path, parts: ModelParts
) -> None:
    texts = Texts(parts.encoders, tmp_path)
    texts.encode([*KEYS, *KEYS], lambda: parts.text(CPU, "why"), CPU)
    assert texts.encoded == 3
    again = Texts(parts.encoders, tmp_path)
    again.encode(KEYS, never, CPU)
    assert torch.equal(again[KEYS[0]].t5, texts[KEYS[0]].t5)
    more = [*KEYS, ("a large green star", 16)]
    assert again.missing(more) == more[3:]
    again.encode(more, lambda: parts.text(CPU, "why"), CPU)
    assert again.encoded == 1


def test_texts_are_those_that_a_dataset_of_targets_has(
    tmp_path: Path, parts: ModelParts, targets: Targets
) -> None:
    row = TargetDataset(targets("pair32"), parts=("text",))[0]
    assert row.text is not None
    key = (row.record.caption, row.record.t5_sequence_length)
    texts = Texts(parts.encoders, tmp_path)
    texts.encode([key], lambda: parts.text(CPU, "why"), CPU)
    torch.testing.assert_close(texts[key].t5, row.text.t5.float(), rtol=1e-5, atol=1e-5)
    assert texts[key].caption_id == row.record.caption_id


def test_other_encoders_have_a_table_of_their_own(tmp_path: Path, parts: ModelParts) -> None:
    Texts(parts.encoders, tmp_path).encode(KEYS, lambda: parts.text(CPU, "why"), CPU)
    other = Texts(lambda: {**parts.encoders(), "dtype": "bfloat16"}, tmp_path)
    assert other.missing(KEYS) == KEYS
    with pytest.raises(TextError):
        other[KEYS[0]]


def test_other_tokenizers_have_a_table_of_their_own(tmp_path: Path, targets: Targets) -> None:
    other = shutil.copytree(model_folder("flux-shapes") / "tokenizer", tmp_path / "words")
    file = other / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    made = []
    for place in (None, str(other)):
        parts = ModelParts(lesson(tmp_path, targets("cache"), tokenizer_1_path=place))
        texts = Texts(parts.encoders, tmp_path)
        assert texts.missing(KEYS) == KEYS
        texts.encode(KEYS, lambda parts=parts: parts.text(CPU, "why"), CPU)
        made.append(texts.folder)
    assert made[0] != made[1]


def test_tokenizers_are_not_looked_for_where_there_is_nothing_to_encode(tmp_path: Path) -> None:
    def nowhere() -> dict[str, str]:
        raise AssertionError("the tokenizers were looked for")

    Texts(nowhere, tmp_path).encode([], never, CPU)
