import pytest

from schemas.base import SchemaError
from schemas.jobs import GenerateJob

BASE = {"manifest": "m.parquet", "output": "out"}


def test_the_recipe_holds_what_changes_bytes_and_nothing_else() -> None:
    recipe = GenerateJob.parse(BASE).recipe()
    assert {"rows_per_shard", "engine.torch_dtype", "sampling.height", "image_format"} <= set(
        recipe
    )
    assert not {"workers", "engine.device", "engine.vram_limit", "output", "manifest"} & set(recipe)


def test_where_and_how_wide_a_job_runs_does_not_change_its_recipe() -> None:
    one = GenerateJob.parse(BASE | {"workers": 1, "engine": {"device": "cpu"}})
    many = GenerateJob.parse(BASE | {"workers": [2, 8], "engine": {"vram_limit": -1.0}})
    assert one.recipe() == many.recipe()


def test_what_came_later_is_in_the_recipe_only_where_it_is_said() -> None:
    plain = GenerateJob.parse(BASE).recipe()
    assert not {"engine.approximate", "engine.attention", "engine.compile"} & set(plain)
    asked = GenerateJob.parse(BASE | {"engine": {"approximate": "fp8", "compile": True}}).recipe()
    assert (asked["engine.approximate"], asked["engine.compile"]) == (["fp8"], True)
    entry = {"path": "a", "offload_device": "cpu", "offload_dtype": "float8_e4m3fn"}
    (model,) = GenerateJob.parse(BASE | {"engine": {"model": [entry]}}).recipe()["engine.model"]
    assert model["kept"] == "float8_e4m3fn"
    assert "offload_device" not in model


def test_a_passthrough_column_may_not_bear_one_of_our_names() -> None:
    with pytest.raises(SchemaError, match=r"passthrough.*image, seed"):
        GenerateJob.parse(BASE | {"passthrough": ["seed", "image", "licence"]})


@pytest.mark.parametrize("workers", [0, "many", [3, 2], [1, 2, 3]])
def test_a_number_of_workers_that_makes_no_sense_is_refused(workers: object) -> None:
    with pytest.raises(SchemaError, match="workers"):
        GenerateJob.parse(BASE | {"workers": workers})
