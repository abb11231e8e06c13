"""What a dataset teaches."""

from pathlib import Path
from typing import Any

import pytest

from batch.errors import JobError
from batch.training.objectives import check_kind, objective_of
from flux_engine.errors import SettingError
from flux_engine.training.direct import DirectDistill
from flux_engine.training.objective import Objective
from flux_engine.training.prior import Prior
from flux_engine.training.sft import Sft
from flux_engine.training.students import X0, Jump, Kd, KdW, Reflow
from flux_engine.training.terms import Terms
from flux_engine.training.timesteps import timesteps
from tests.batch.training.lessons import lesson


def objective(task: str, options: dict[str, Any] | None = None, **values: Any) -> Objective:
    dataset = {"path": "rows", "task": task, **(options or {})}
    job = lesson("out", Path("rows"), datasets=[dataset], **values)
    return objective_of(job, job.datasets[0], timestep_shift=False)


def test_each_task_is_an_objective_with_its_options() -> None:
    levels = timesteps("logit_normal", mean=0.0, spread=1.0, shift=1.0)
    assert objective("sft") == Sft(timesteps=levels) == objective("sft:train")
    assert objective("prior", embedded_guidance=3.5) == Prior(timesteps=levels, guidance=3.5)
    assert objective("sft", extra_inputs="embedded_guidance") == Sft(
        timesteps=levels, guidance="row"
    )
    assert objective("reflow") == Reflow(timesteps=levels)  # the guidance is the row's
    assert objective("jump", {"student_steps": 4}) == Jump(steps=4)
    assert objective("x0", {"student_steps": 2}) == X0(steps=2)
    assert objective("kd", {"teacher_guidance": 3.0}) == Kd(guidance=3.0)
    ranged = objective("kd_w", embedded_guidance=[1.0, 4.0])
    assert ranged == KdW(weights=(1.0, 4.0))
    assert objective("kd_w", embedded_guidance=2.0) == KdW(weights=(2.0, 2.0))
    assert objective("direct_distill", {"student_steps": 4}) == DirectDistill(
        num_inference_steps=4, timestep_shift=False
    )


def test_levels_and_losses_are_those_of_the_job() -> None:
    made = objective(
        "sft",
        timesteps={"kind": "diffsynth"},
        loss={"kind": "huber", "delta": 0.5, "weight": "diffsynth"},
    )
    assert made == Sft(
        timesteps=timesteps("diffsynth"),
        terms=Terms(loss_type="huber", huber_delta=0.5, weighting="diffsynth"),
    )


def test_what_does_not_go_with_a_task_is_refused() -> None:
    with pytest.raises(JobError, match="rows: embedded_guidance 'row' is nothing that kd_w"):
        objective("kd_w", embedded_guidance="row")
    with pytest.raises(SettingError, match="direct_distill has no one noise level"):
        objective("direct_distill", loss={"weight": "cosmap"})


def test_kinds_are_checked_by_name() -> None:
    check_kind(objective("sft"), "pictures", "sft", "rows")
    check_kind(objective("sft"), "cache", "sft:train", "rows")
    with pytest.raises(JobError, match="rows: holds cache, of which task kd cannot learn"):
        check_kind(objective("kd"), "cache", "kd", "rows")
    with pytest.raises(JobError, match="for pictures there is sft"):
        check_kind(objective("sft:train"), "pictures", "sft:train", "rows")
