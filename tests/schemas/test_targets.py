from typing import Any

import pytest

from schemas.base import SchemaError
from schemas.jobs import DistillJob
from schemas.targets import VelocityTarget

JOB = {"manifest": "m.parquet", "output": "out"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({}, "target"),
        ({"kind": "logits"}, "cache"),
        ({"kind": "pair", "segments": 4}, "unknown name"),
        ({"kind": "path", "segments": 0}, "greater than or equal to 1"),
        ({"kind": "velocity", "timesteps": [1.5]}, "less than or equal to 1"),
        ({"kind": "velocity", "timesteps": [0.5], "queries": 2}, "not both"),
        ({"kind": "feature"}, "taps: is missing"),
        ({"kind": "feature", "taps": []}, "at least 1"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(target: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        DistillJob.parse(JOB | {"target": target})


def test_a_target_knows_how_often_it_asks() -> None:
    assert VelocityTarget(timesteps=(0.1, 0.9)).count == 2
    assert VelocityTarget(queries=5).count == 5


def test_what_changes_a_byte_is_in_the_recipe_and_what_does_not_is_not() -> None:
    recipe = DistillJob.parse(JOB | {"target": {"kind": "path", "segments": 4}}).recipe()
    assert recipe["target.segments"] == 4
    assert recipe["dtype"] == "float16"
    assert not any(name.startswith(("workers", "manifest", "output")) for name in recipe)


def test_columns_of_targets_cannot_be_carried_along() -> None:
    with pytest.raises(SchemaError, match="digest are columns of our own"):
        DistillJob.parse(JOB | {"target": {"kind": "pair"}, "passthrough": ["digest"]})


def test_a_latent_is_not_stored_many_times() -> None:
    with pytest.raises(SchemaError, match="samples_per_row 2: a picture's latent is stored once"):
        DistillJob.parse(JOB | {"target": {"kind": "cache"}, "samples_per_row": 2})
    velocity = DistillJob.parse(JOB | {"target": {"kind": "velocity"}, "samples_per_row": 2})
    assert velocity.samples_per_row == 2


def test_what_came_later_is_told_only_where_it_is_set() -> None:
    for kind in ("cache", "velocity"):
        plain = DistillJob.parse(JOB | {"target": {"kind": kind}})
        later = {"target.max_pixels", "target.bucket_step", "target.mask"}
        assert not later & set(plain.recipe())
        assert not {"max_pixels", "bucket_step", "mask"} & set(plain.target.model_dump())
        assert DistillJob.model_validate_json(plain.model_dump_json()) == plain
    told = DistillJob.parse(JOB | {"target": {"kind": "cache", "max_pixels": 4096, "mask": True}})
    recipe = told.recipe()
    names = ("target.max_pixels", "target.bucket_step", "target.mask")
    assert [recipe[name] for name in names] == [4096, 16, True]
    assert DistillJob.model_validate_json(told.model_dump_json()) == told


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bucket_step": 32}, "bucket_step means nothing without max_pixels"),
        ({"max_pixels": 4096, "bucket_step": 24}, "multiple of 16"),
        ({"max_pixels": 512, "bucket_step": 32}, "less than the 1024 of one step"),
    ],
)
def test_sizes_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        DistillJob.parse(JOB | {"target": {"kind": "cache"} | values})
