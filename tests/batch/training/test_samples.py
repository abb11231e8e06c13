"""Sample pictures."""

from pathlib import Path

import torch

from batch.training.samples import Sampler
from batch.training.worker import TrainWorker
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import lesson

PROMPTS = ["a large red circle", "a small blue square"]


def sampler(worker: TrainWorker) -> Sampler:
    return Sampler(
        worker.job, worker.learner.dit, worker.autoencoder.coder(), worker.texts, worker.parts
    )


def test_each_prompt_has_the_same_picture_until_something_is_learned(
    tmp_path: Path, targets: Targets
) -> None:
    sampling = {"num_inference_steps": 4, "cfg_scale": 2.0, "negative_prompt": "a green star"}
    job = lesson(tmp_path, targets("cache"), sample_prompts=PROMPTS, sampling=sampling)
    worker = TrainWorker(job)
    worker.setup()
    shown = list(sampler(worker)())
    assert [prompt for prompt, _ in shown] == PROMPTS
    assert shown[0][1] != shown[1][1]
    assert list(sampler(worker)()) == shown
    with torch.no_grad():
        for name, parameter in worker.learner.stepper.parameters.items():
            if name.endswith("lora_B"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert [png for _, png in sampler(worker)()] != [png for _, png in shown]


def test_wide_weights_are_computed_with_as_the_job_does(tmp_path: Path, targets: Targets) -> None:
    job = lesson(
        tmp_path, targets("cache"), sample_prompts=PROMPTS[:1], torch_dtype="bfloat16",
        trainable_models="dit", lora_rank=None, lora_target_modules=None,
        sampling={"num_inference_steps": 2},
    )  # fmt: skip
    worker = TrainWorker(job)
    worker.setup()
    assert len(list(sampler(worker)())) == 1
