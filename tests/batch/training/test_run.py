"""A training job from its datasets to its result, without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from batch import nodes
from batch.errors import JobError, OutputError
from batch.training.look import checked
from batch.training.run import Stop, standing, train, workers_of
from schemas.training import TrainJob
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson
from tests.flux_engine.weights.watched import hashed


def never() -> Stop:
    raise AssertionError("Ray was started")


def go(job: TrainJob, stop: Stop = lambda: False) -> tuple[int, int, int]:
    report = train(job, checked(job), never, stop)
    return report.step, report.steps, report.resumed


def test_a_look_at_a_new_output_does_not_read_the_transformer_whole(
    tmp_path: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = lesson(tmp_path / "out", targets("cache"))
    read = hashed(monkeypatch, "digest")
    assert standing(job, checked(job)).startswith("0 of 6 steps are done")
    weights = {file.name for file in read if file.suffix == ".safetensors"}
    assert weights == {"ae.safetensors", "model.safetensors"}


def test_a_run_goes_on_and_a_finished_one_is_not_made_again(
    tmp_path: Path, targets: Targets
) -> None:
    job = lesson(tmp_path / "out", targets("cache"))
    answers = iter([False, False, True])
    assert go(job, lambda: next(answers)) == (3, 6, 0)
    assert standing(job, checked(job)).startswith("3 of 6 steps are done")
    assert go(job) == (6, 6, 3)
    page = (tmp_path / "out" / "training.html").stat().st_mtime_ns
    assert go(job) == (6, 6, 6)
    assert (tmp_path / "out" / "training.html").stat().st_mtime_ns == page


def test_another_recipe_or_other_rows_are_refused(tmp_path: Path, targets: Targets) -> None:
    go(lesson(tmp_path / "out", targets("cache")))
    other = lesson(tmp_path / "out", targets("cache"), learning_rate=5e-4)
    with pytest.raises(OutputError, match=r"learning_rate was 0\.001 and is 0\.0005"):
        go(other)
    with pytest.raises(OutputError, match=r"learning_rate"):
        standing(other, checked(other))
    with pytest.raises(OutputError, match=r"datasets\.0 was"):
        go(lesson(tmp_path / "out", targets("pair")))


def test_a_finished_run_is_written_again_as_another_layout_or_type(
    tmp_path: Path, targets: Targets
) -> None:
    file, page = tmp_path / "out" / "lora.safetensors", tmp_path / "out" / "training.html"
    go(lesson(tmp_path / "out", targets("cache")))
    for values in ({"lora_layout": "kohya"}, {"save_dtype": "float32"}, {"sample_prompts": ["a"]}):
        before = page.stat().st_mtime_ns
        told = {"lora_layout": "kohya"} | values
        job = lesson(tmp_path / "out", targets("cache"), **told)
        assert go(job) == (6, 6, 6)
        assert page.stat().st_mtime_ns != before
        there = json.loads((tmp_path / "out" / "_run" / "job.json").read_text())
        assert there["lora_layout"] == "kohya"
        assert any(name.startswith("lora_unet_") for name in load_file(file))
    assert [path.name for path in (tmp_path / "out" / "samples").iterdir()] == [
        "step-000006-00.png"
    ]
    go(lesson(tmp_path / "at once", targets("cache"), lora_layout="kohya"))
    wanted, found = load_file(tmp_path / "at once" / "lora.safetensors"), load_file(file)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    before = page.stat().st_mtime_ns
    assert go(job) == (6, 6, 6)
    assert page.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"save_steps": 2}, "save_steps was None and is 2, and its steps are done"),
        ({"sample_prompts": ["b"]}, r"sample_prompts was \['a'\] and is \['b'\], and its pictures"),
        ({"sample_seed": 3}, "sample_seed was 0 and is 3"),
    ],
)
def test_what_a_finished_run_cannot_have_any_more_is_refused(
    values: dict[str, Any], told: str, tmp_path: Path, targets: Targets
) -> None:
    go(lesson(tmp_path / "out", targets("cache"), max_steps=1, sample_prompts=["a"]))
    before = (tmp_path / "out" / "_run" / "job.json").read_bytes()
    other = {"max_steps": 1, "sample_prompts": ["a"]} | values
    job = lesson(tmp_path / "out", targets("cache"), **other)
    for refused in (lambda: go(job), lambda: standing(job, checked(job))):
        with pytest.raises(OutputError, match=f"is finished: {told}"):
            refused()
    assert (tmp_path / "out" / "_run" / "job.json").read_bytes() == before


def test_without_a_gpu_one_process_is_enough(
    tmp_path: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = lesson(tmp_path, targets("cache"), workers="auto")
    assert workers_of(job, never) == "local"
    with pytest.raises(AssertionError, match="Ray was started"):
        workers_of(lesson(tmp_path, targets("cache"), workers=2), never)


@pytest.mark.parametrize(
    ("workers", "steps", "told"),
    [("auto", 1, 1), ("auto", 4, 2), ("auto", 6, 3), ([1, 6], 12, (1, 6)), ([2, 3], 4, 2)],
)
def test_workers_are_those_that_the_cluster_has_gpus_for(
    workers: Any, steps: int, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "resources", lambda: {"GPU": 3.0, "CPU": 8.0})
    monkeypatch.setenv("RAY_ADDRESS", "http://head")
    values = {"output_path": "out", "model": "flux-shapes", "dataset": "rows"}
    job = TrainJob.parse(
        values | {"workers": workers, "gradient_accumulation_steps": steps, "device": "auto"}
    )
    assert workers_of(job, lambda: lambda: False) == told


def test_fewer_gpus_than_the_least_of_a_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "resources", lambda: {"GPU": 3.0, "CPU": 8.0})
    values = {"output_path": "out", "model": "flux-shapes", "dataset": "rows"}
    job = TrainJob.parse(values | {"workers": [4, 9], "gradient_accumulation_steps": 4})
    with pytest.raises(JobError, match="workers: 4 asked for, and the cluster has 3 GPUs"):
        workers_of(job, lambda: lambda: False)
