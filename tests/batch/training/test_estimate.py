"""What a job would do and hold."""

from pathlib import Path

import torch

from batch.training.estimate import foreseen, memory
from batch.training.look import checked
from flux_engine.models.dit import FluxSpec, FluxTransformer
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson


def test_numbers_are_those_of_the_run(tmp_path: Path, targets: Targets) -> None:
    job = lesson(tmp_path, targets("cache"))
    curriculum = checked(job)
    lines = list(foreseen(job, curriculum))
    worker, _ = learned(job)
    parameters = worker.learner.stepper.parameters.values()
    numbers = sum(p.numel() for p in parameters)
    assert f"trainable: {numbers} parameters" in lines
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
