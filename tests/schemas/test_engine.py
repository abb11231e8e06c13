import pytest

from flux_engine.vram.placements import Placements
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


def test_an_entry_says_where_its_weights_are_in_four_states() -> None:
    states = {"offload_dtype": "float8_e4m3fn", "offload_device": "cpu", "onload_device": "disk"}
    entry = ModelEntry.parse({"path": "a", **states})
    told = {name: value for name, value in entry.placements().items() if value is not None}
    assert told == states
    assert set(entry.placements()) == set(Placements.__dataclass_fields__)
    with pytest.raises(SchemaError, match="offload_dtype"):
        ModelEntry.parse({"path": "a", "offload_dtype": "fp8"})


def test_places_are_not_in_the_recipe_and_eight_bits_are() -> None:
    plain = ModelEntry.parse({"path": "a"})
    moved = ModelEntry.parse({"path": "a", "offload_device": "disk", "onload_dtype": "bfloat16"})
    narrow = ModelEntry.parse({"path": "a", "preparing_dtype": "float8_e4m3fn"})
    assert plain.recipe() == moved.recipe() == plain.source()
    assert narrow.recipe() == plain.source() | {"kept": "float8_e4m3fn"}


def test_approximations_are_named_one_by_one_and_off() -> None:
    assert EngineConfig().approximate == ()
    assert EngineConfig.parse({"approximate": "fp8"}).approximate == ("fp8",)
    both = EngineConfig.parse({"approximate": ["fp8", "step_cache"]})
    assert both.approximate == ("fp8", "step_cache")
    for wrong in ("fp4", ["fp8", "fp8"]):
        with pytest.raises(SchemaError, match="approximat"):
            EngineConfig.parse({"approximate": wrong})
