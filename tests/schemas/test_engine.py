import pytest

from schemas.base import SchemaError
from schemas.engine import EngineConfig, ModelEntry


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"path": "a", "model_id": "b/c", "origin_file_pattern": "*"},
        {"model_id": "b/c"},
        {"path": "a", "origin_file_pattern": "*"},
    ],
)
def test_an_entry_says_one_origin_and_says_it_whole(values: dict[str, str]) -> None:
    with pytest.raises(SchemaError):
        ModelEntry.parse(values)


def test_a_list_of_entries_is_a_model() -> None:
    config = EngineConfig.parse(
        {"model": [{"path": "a.safetensors"}, {"model_id": "b/c", "origin_file_pattern": "x*"}]}
    )
    assert [entry.path for entry in config.model if isinstance(entry, ModelEntry)] == [
        "a.safetensors",
        None,
    ]


def test_a_misspelt_entry_is_told_with_its_path() -> None:
    with pytest.raises(
        SchemaError, match=r"engine\.yaml: model\..*pth: unknown name; did you mean 'path'"
    ):
        EngineConfig.parse({"model": [{"pth": "a"}]}, "engine.yaml")
