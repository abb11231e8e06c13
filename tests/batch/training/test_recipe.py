"""What an output is bound to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from batch.errors import JobError
from batch.training.look import checked
from batch.training.recipe import recipe_of, resolved
from flux_engine.defaults import model_folder
from schemas.training import TrainJob
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson
from tests.batch.training.tables import write_table


def recipe(output: Path, dataset: Path, **values: Any) -> dict[str, Any]:
    job = lesson(output, dataset, **values)
    return recipe_of(job, checked(job))


def test_rows_and_weights_count_by_content_and_not_by_place(
    tmp_path: Path, targets: Targets
) -> None:
    there = tmp_path / "elsewhere"
    shutil.copytree(targets("cache"), there)
    first = recipe(tmp_path, targets("cache"))
    assert recipe(tmp_path, there) == first
    other = recipe(tmp_path, targets("pair"))
    assert {name for name in first if first[name] != other.get(name)} == {"datasets.0"}
    assert recipe(tmp_path, targets("cache"), seed=1)["seed"] == 1


def test_the_parts_that_encode_rows_count_by_content_and_others_do_not(
    tmp_path: Path, targets: Targets
) -> None:
    """Of pictures the autoencoder, the text encoders and their tokenizers; of targets none."""
    model = tmp_path / "model"
    shutil.copytree(model_folder("flux-shapes"), model)
    pictures = write_table(tmp_path / "pictures")

    def told(dataset: Path, **values: Any) -> dict[str, Any]:
        return recipe(tmp_path / "out", dataset, model=str(model), **values)

    def changes(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
        return {name for name in {*one, *other} if one.get(name) != other.get(name)}

    first, cached = told(pictures), told(targets("cache"))
    retold = told(targets("cache"), trigger_word="zorb")
    changed_in(model / "tokenizer" / "tokenizer_config.json")
    assert changes(first, told(pictures)) == {"weights.tokenizer"}
    assert changes(retold, told(targets("cache"), trigger_word="zorb")) == {"weights.tokenizer"}
    assert told(targets("cache")) == cached
    for file, part in (("ae", "weights.vae"), ("text_encoder/model", "weights.clip")):
        before = told(pictures)
        changed_in(model / f"{file}.safetensors")
        assert changes(before, told(pictures)) == {part}


def changed_in(file: Path) -> None:
    """Other content that is still of use."""
    if file.suffix == ".json":
        file.write_text(json.dumps(json.loads(file.read_text()), indent=7))
        return
    read = load_file(file)
    save_file({name: tensor * 1.5 for name, tensor in read.items()}, file)


def test_values_of_sample_pictures_are_those_of_the_model() -> None:
    job = TrainJob.parse({"output_path": "o", "model": "flux-shapes", "dataset": "d"})
    assert job.sampling.height is None
    assert (resolved(job).sampling.height, resolved(job).sampling.t5_sequence_length) == (64, 20)
    files = TrainJob.parse({"output_path": "o", "model_paths": ["a"], "dataset": "d"})
    assert resolved(files).sampling.t5_sequence_length == 512


def test_words_about_sample_pictures_need_prompts(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"sampling\.cfg_scale, tiled: of no effect without sample_"):
        lesson(
            tmp_path, tmp_path, sampling={"cfg_scale": 7, "tiled": True, "t5_sequence_length": 16}
        )
    job = lesson(tmp_path, tmp_path, sampling={"t5_sequence_length": 16})
    assert job.sampling.t5_sequence_length == 16
    again = resolved(TrainJob.parse(job.model_dump(mode="json")))  # as it was written down
    assert again == job
    shown = lesson(tmp_path, tmp_path, sampling={"cfg_scale": 7}, sample_prompts=["a"])
    assert shown.sampling.cfg_scale == 7
