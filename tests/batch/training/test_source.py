"""What every dataset has: how captions are told, values of rows, and what it is by content."""

from pathlib import Path
from typing import Any

import pytest

from batch.errors import JobError
from batch.training.source import Captions, digest_of, inputs, is_targets
from tests.batch.doubles import write_manifest
from tests.batch.targets.made import Targets


def test_a_trigger_word_stands_before_captions_that_do_not_have_it() -> None:
    captions = Captions("sks fox")
    assert captions.told("in the snow", dropped=False) == "sks fox, in the snow"
    assert captions.told("a sks fox in the snow", dropped=False) == "a sks fox in the snow"
    assert captions.told("", dropped=False) == "sks fox"
    assert captions.told("in the snow", dropped=True) == ""
    assert Captions().told("in the snow", dropped=False) == "in the snow"


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a bowl of soup", "owl, a bowl of soup"),
        ("two owls", "owl, two owls"),
        ("an owl", "an owl"),
        ("owl_2 on a branch", "owl, owl_2 on a branch"),
        ("the (owl), asleep", "the (owl), asleep"),
    ],
)
def test_a_trigger_word_counts_as_there_as_a_whole_word_only(caption: str, told: str) -> None:
    assert Captions("owl").told(caption, dropped=False) == told


def test_a_trigger_word_may_end_in_a_sign() -> None:
    assert Captions("<owl>").told("a <owl> here", dropped=False) == "a <owl> here"
    assert Captions("<owl>").told("an owl", dropped=False) == "<owl>, an owl"


def test_targets_are_told_from_pictures(tmp_path: Path, targets: Targets) -> None:
    assert is_targets(str(targets("cache")))
    write_manifest(tmp_path / "data" / "a.parquet", {"prompt": ["a"]})
    assert not is_targets(str(tmp_path))
    assert not is_targets(str(tmp_path / "data" / "a.parquet"))
    assert not is_targets(str(tmp_path / "*" / "a.parquet"))


def test_values_of_a_row_are_what_an_objective_takes() -> None:
    names = ("seed", "num_inference_steps", "embedded_guidance", "rand_device", "cfg_scale")
    row = {"seed": 5, "num_inference_steps": 4.0, "embedded_guidance": None, "rand_device": "cpu"}
    assert inputs(names, row | {"other": 1}, "row") == {"seed": 5, "num_inference_steps": 4}


def test_text_that_is_a_number_is_one() -> None:
    row = {
        "seed": "9223372036854775806", "num_inference_steps": " 4 ", "cfg_scale": "1.0",
        "rand_device": "cpu", "noise_scale": "0.5", "max_timestep_boundary": "1",
    }  # fmt: skip
    assert inputs(tuple(row), row, "row") == {
        "seed": 9223372036854775806, "num_inference_steps": 4, "noise_scale": 0.5,
        "max_timestep_boundary": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"cfg_scale": "3.5"}, "cfg_scale is '3.5'; training takes 1 only"),
        ({"cfg_scale": "cpu"}, "cfg_scale is 'cpu'; training takes 1 only"),
        ({"seed": "1_0"}, "seed is '1_0', and a number is wanted"),
        ({"seed": "9" * 5000}, "seed is '9"),
        ({"seed": "9" * 20}, r"seed is 1e\+20; allowed are integers from 0 on, below"),
        ({"seed": "1e999"}, "seed is '1e999', and a number is wanted"),
        ({"noise_scale": "nan"}, "noise_scale is 'nan', and a number is wanted"),
        ({"num_inference_steps": "0"}, "num_inference_steps is 0; allowed are integers from 1 on"),
        ({"rand_device": "cuda"}, "rand_device is 'cuda'; training takes 'cpu' only"),
        ({"cfg_scale": 3.5}, "cfg_scale is 3.5; training takes 1 only"),
        ({"noise_scale": "much"}, "noise_scale is 'much', and a number is wanted"),
        ({"max_timestep_boundary": 1.5}, "max_timestep_boundary is 1.5; allowed are 0 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; allowed are integers from 1 on"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"min_timestep_boundary": 0.7, "max_timestep_boundary": 0.2}, "is not below the other"),
    ],
)
def test_what_cannot_be_taken_is_named_with_its_row(row: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError, match=f"rows.parquet row 3: .*{told}"):
        inputs(tuple(row), row, "rows.parquet row 3")


def test_a_dataset_is_the_same_wherever_it_lies() -> None:
    told: dict[str, Any] = {"kind": "cache", "identity": "a", "files": [{"digest": "1"}]}
    here, there = told | {"address": "/here"}, told | {"address": "s3://there"}
    assert digest_of(here) == digest_of(there)
    assert digest_of(here) != digest_of(here | {"files": [{"digest": "2"}]})
