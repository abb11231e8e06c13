"""What a job would do and hold."""

from pathlib import Path
from typing import Any

import pytest
import torch

from batch.training.estimate import foreseen, memory, workers
from batch.training.look import checked
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.training.full import TrainedWeights
from schemas.training import TrainJob
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson
from tests.batch.training.tables import write_table


def test_numbers_are_those_of_the_run(tmp_path: Path, targets: Targets) -> None:
    job = lesson(tmp_path, targets("cache"))
    curriculum = checked(job)
    lines = list(foreseen(job, curriculum))
    worker, _ = learned(job)
    parameters = worker.learner.stepper.parameters.values()
    numbers = sum(p.numel() for p in parameters)
    assert f"trainable: {numbers} parameters" in lines
    assert "workers: this process" in lines
    told = memory(job, curriculum, worker.learner.dit)
    assert told["trained"] == sum(p.nbytes for p in parameters)
    state = worker.learner.stepper.state()
    kept = sum(t.nbytes for name, t in state.optimizer.items() if not name.endswith("|step"))
    assert told["optimizer"] == kept
    assert told["average"] == sum(t.nbytes for t in state.average.values())
    assert told["base"] == sum(p.nbytes for p in worker.learner.dit.parameters())
    assert told["all"] == sum(size for part, size in told.items() if part != "all")


def test_an_average_is_as_wide_whatever_is_trained(tmp_path: Path, targets: Targets) -> None:
    whole = {"trainable_models": "dit", "lora_rank": None, "lora_target_modules": None}
    job = lesson(tmp_path, targets("cache"), master_dtype="bfloat16", **whole)
    with torch.device("meta"):
        dit = FluxTransformer(FluxSpec(double_blocks=1, single_blocks=1))
    told = memory(job, checked(job), dit)
    assert told["average"] == 4 * sum(p.numel() for p in dit.parameters())


@pytest.mark.parametrize(
    ("values", "gpus", "cluster", "told"),
    [
        ({"workers": "local"}, 4, "", "this process"),
        ({}, 0, "", "this process; no GPU is used"),
        ({"device": "cpu"}, 4, "", "this process; no GPU is used"),
        ({}, 4, "", "4 on 4 GPUs: their number divides gradient_accumulation_steps (12)"),
        ({"gradient_accumulation_steps": 1}, 4, "", "1 on 4 GPUs: their number divides"),
        ({}, 5, "", "4 on 5 GPUs"),
        ({}, 0, "http://head", "as many as the cluster has GPUs for, of 1, 2, 3, 4, 6, 12: their"),
        ({"workers": 3}, 0, "", "3"),
        ({"workers": [3, 5]}, 0, "", "as many as there is room for, 3, 4: their number divides"),
    ],
)
def test_how_many_workers_there_will_be_is_told_with_the_reason(
    values: dict[str, Any],
    gpus: int,
    cluster: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    job = {"gradient_accumulation_steps": 12, "model": "flux-shapes", "dataset": "rows"} | values
    assert workers(TrainJob.parse({"output_path": "out"} | job)).startswith(told)


def test_what_weights_were_is_counted_where_it_is_asked_for(
    tmp_path: Path, targets: Targets
) -> None:
    whole = {"trainable_models": "dit", "lora_rank": None, "lora_target_modules": None}
    told, kept = {}, {}
    for task in ("sft", "prior"):
        job = lesson(tmp_path / task, targets("cache"), task=task, max_steps=1, **whole)
        worker, _ = learned(job)
        told[task] = memory(job, checked(job), worker.learner.dit)
        assert isinstance(worker.learner.trained, TrainedWeights)
        kept[task] = sum(t.nbytes for t in (worker.learner.trained._base or {}).values())
        assert told[task]["kept base"] == kept[task]
    assert kept["sft"] == 0 < kept["prior"]
    assert told["prior"]["all"] == told["sft"]["all"] + kept["prior"]


def test_text_is_counted_as_long_as_the_longest_of_the_datasets(
    tmp_path: Path, targets: Targets
) -> None:
    datasets = [str(targets("cache")), str(write_table(tmp_path / "table"))]
    with torch.device("meta"):
        dit = FluxTransformer(FluxSpec())
    told = []
    for length in (16, 512):
        job = lesson(
            tmp_path / "out", targets("cache"), datasets=datasets, height=64, width=64,
            sampling={"t5_sequence_length": length},
        )  # fmt: skip
        told.append(memory(job, checked(job), dit)["activations"])
    tokens, of_targets = 16, 20
    assert told[1] / told[0] == (tokens + 512) / (tokens + of_targets)


def test_the_published_model_fits_where_it_is_known_to(tmp_path: Path, targets: Targets) -> None:
    with torch.device("meta"):
        dit = FluxTransformer(FluxSpec())
    sizes = {"lora_target_modules": ["all"], "lora_rank": 16, "torch_dtype": "bfloat16"}
    job = lesson(tmp_path, targets("cache"), ema=0.0, **sizes)
    told = memory(job, checked(lesson(tmp_path, targets("cache"))), dit)
    assert told["base"] == 2 * sum(p.numel() for p in dit.parameters())
    assert told["trained"] == 4 * 16 * 4_786_176
    assert told["optimizer"] == 8 * 16 * 4_786_176
    narrow = memory(
        lesson(tmp_path, targets("cache"), fp8_models="dit", **sizes), checked(job), dit
    )
    assert narrow["base"] < told["base"] * 0.55
    kept = lesson(tmp_path, targets("cache"), use_gradient_checkpointing=True, **sizes)
    assert memory(kept, checked(job), dit)["activations"] < told["activations"] / 10
