from typing import Any

import pytest

from schemas.base import SchemaError
from schemas.lora import LoraEntry
from schemas.manifest import PromptRow
from schemas.sampling import Sampling


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"path": "a.safetensors", "scale": 0.5}, "a.safetensors"),
        ({"path": "a.safetensors", "model_id": None, "scale": None}, "a.safetensors"),
        ({"model_id": "someone/owls"}, "someone/owls"),
        ({"model_id": "someone/owls", "origin_file_pattern": "v2*"}, "someone/owls:v2*"),
    ],
)
def test_an_entry_has_one_origin_and_a_name(entry: dict[str, Any], name: str) -> None:
    assert LoraEntry.parse(entry).name == name
    assert PromptRow.parse({"prompt": "owl", "loras": [entry]}).loras == (LoraEntry.parse(entry),)


def test_a_path_alone_is_an_entry() -> None:
    assert Sampling.parse({"loras": ["a", {"path": "b"}]}).loras == (
        LoraEntry(path="a"),
        LoraEntry(path="b"),
    )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "give either path or model_id"),
        ({"path": "a", "model_id": "b/c"}, "give either path or model_id"),
        ({"path": "a", "origin_file_pattern": "*"}, "goes with model_id"),
        ({"path": "a", "scale": float("nan")}, "finite"),
        ({"path": "a", "scale": 1e6}, "less than or equal to 100"),
        ({"path": "a", "strength": 1}, "unknown name"),
        ({"path": "s3://k:secret@b/a"}, "has credentials in it"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        PromptRow.parse({"prompt": "owl", "loras": [entry]})


def test_a_row_wears_no_more_than_sixteen() -> None:
    with pytest.raises(SchemaError, match="at most 16"):
        PromptRow.parse({"prompt": "owl", "loras": ["a"] * 17})
