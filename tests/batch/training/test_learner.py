"""The model that learns."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from batch.training.learner import Learner, checkpointing_of, options_of, shape_of
from batch.training.models import ModelParts
from flux_engine.errors import CheckpointError, SettingError
from flux_engine.models.fp8 import Fp8Linear
from flux_engine.training.full import TrainedWeights
from flux_engine.training.lora import TrainedLora
from flux_engine.training.reduction import Alone
from tests.batch.targets.made import Targets
from tests.batch.training.lessons import learned, lesson

CPU = torch.device("cpu")


def learner(folder: Path, **values: Any) -> Learner:
    job = lesson(folder, Path("rows"), **values)
    return Learner(job, ModelParts(job), CPU, Alone(), 10)


def test_a_lora_has_the_layers_ranks_and_alphas_that_are_asked_for(tmp_path: Path) -> None:
    made = learner(
        tmp_path,
        lora_target_modules="img_attn.qkv,to_qkv_mlp",
        lora_rank=4,
        lora_alpha=8,
        ranks={"img_attn.qkv": 2},
        alphas={"to_qkv_mlp": 1},
    )
    assert isinstance(made.trained, TrainedLora)
    shapes = set(made.trained.shape.values())
    assert shapes == {(2, 8.0), (4, 1.0)}
    assert len(made.trained.shape) == 2 + 4


def test_the_base_is_frozen_and_a_whole_transformer_is_not(tmp_path: Path) -> None:
    lora = learner(tmp_path)
    assert not any(p.requires_grad for p in lora.dit.parameters())
    whole = learner(
        tmp_path, trainable_models="dit", torch_dtype="bfloat16",
        lora_rank=None, lora_target_modules=None,
    )  # fmt: skip
    assert isinstance(whole.trained, TrainedWeights)
    assert all(p.dtype == torch.float32 for p in whole.stepper.parameters.values())
    assert whole.net.compute == torch.bfloat16


def test_a_base_of_eight_bits_is_kept_so(tmp_path: Path) -> None:
    made = learner(tmp_path, fp8_models="dit")
    assert any(isinstance(module, Fp8Linear) for module in made.dit.modules())


def test_a_lora_goes_on_from_a_file_and_another_is_merged_before(
    tmp_path: Path, targets: Targets
) -> None:
    job = lesson(tmp_path / "first", targets("cache"), save_dtype="float32", ema=0.0)
    worker, _ = learned(job)
    file = str(tmp_path / "first" / "lora.safetensors")
    again = learner(tmp_path, lora_checkpoint=file)
    for name, parameter in worker.learner.stepper.parameters.items():
        torch.testing.assert_close(again.stepper.parameters[name].detach(), parameter.detach())
    plain, merged = learner(tmp_path), learner(tmp_path, preset_lora_path=file)
    changed = [
        name
        for (name, one), other in zip(
            plain.dit.named_parameters(), merged.dit.parameters(), strict=True
        )
        if not torch.equal(one, other)
    ]
    assert changed
    assert all("img_attn.qkv" in name or "linear1" in name for name in changed)
    with pytest.raises(CheckpointError, match="has rank 4, trained is 2"):
        learner(tmp_path, lora_checkpoint=file, lora_rank=2)


def test_layers_that_a_file_says_nothing_of_are_told_of(
    tmp_path: Path, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    learned(lesson(tmp_path / "first", targets("cache"), lora_target_modules=["img_attn.qkv"]))
    file = str(tmp_path / "first" / "lora.safetensors")
    with caplog.at_level(logging.WARNING):
        learner(tmp_path, lora_checkpoint=file, lora_target_modules=["img_attn.qkv"])
    assert "says nothing of" not in caplog.text
    with caplog.at_level(logging.WARNING):
        learner(tmp_path, lora_checkpoint=file)
    (told,) = [record for record in caplog.records if "says nothing of" in record.message]
    assert told.first == "single_blocks.0.linear1"  # type: ignore[attr-defined]


def test_what_is_written_is_the_average_where_there_is_one(tmp_path: Path) -> None:
    made = learner(tmp_path, ema=0.9)
    assert made.stepper.average is not None
    name = next(iter(made.stepper.parameters))
    made.stepper.average.tensors[name].fill_(7.0)
    assert float(made.result()[name].mean()) == 7.0
    with made.averaged():
        assert float(made.stepper.parameters[name].detach().mean()) == 7.0
    assert float(made.stepper.parameters[name].detach().mean()) != 7.0
    assert torch.equal(learner(tmp_path, ema=0.0).result()[name], made.stepper.parameters[name])


def test_settings_are_passed_on(tmp_path: Path) -> None:
    job = lesson(
        tmp_path, Path("rows"), optimizer={"betas": [0.8, 0.9], "options": {"foreach": False}}
    )
    assert options_of(job) == {"betas": (0.8, 0.9), "foreach": False}
    group = learner(tmp_path, optimizer={"eps": 1e-6}, weight_decay=0.5).stepper.optimizer
    assert (group.param_groups[0]["eps"], group.param_groups[0]["weight_decay"]) == (1e-6, 0.5)
    assert shape_of(job).rank == 4
    assert checkpointing_of(job) == "none"
    for offload, wanted in ((False, "blocks"), (True, "offload")):
        told = {"use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": offload}
        assert checkpointing_of(lesson(tmp_path, Path("rows"), **told)) == wanted
    with pytest.raises(SettingError, match="does not take"):
        learner(tmp_path, optimizer={"kind": "torch.optim.SGD", "betas": [0.9, 0.9]})
