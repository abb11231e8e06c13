"""What a dataset of a job teaches, as the engine's objectives."""

from typing import Any

from batch.errors import JobError
from flux_engine.training.direct import DirectDistill
from flux_engine.training.objective import Objective
from flux_engine.training.prior import Prior
from flux_engine.training.sft import Sft
from flux_engine.training.students import X0, Jump, Kd, KdW, Reflow
from flux_engine.training.terms import Terms
from flux_engine.training.timesteps import timesteps
from schemas.task import TrainDataset
from schemas.training import TrainJob


def objective_of(job: TrainJob, dataset: TrainDataset, *, timestep_shift: bool) -> Objective:
    """SettingError and JobError for what does not go with the task."""
    task = job.task_of(dataset)
    loss = job.loss
    terms = Terms(loss_type=loss.kind, huber_delta=loss.delta, weighting=loss.weight)
    levels = timesteps(job.timesteps.kind, **job.timesteps.options)
    guidance = job.guidance_of(dataset)
    told: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    match task:
        case "sft" | "sft:train":
            return Sft(timesteps=levels, terms=terms, posterior_mean=dataset.posterior_mean, **told)
        case "prior":
            return Prior(timesteps=levels, terms=terms, **told)
        case "reflow":
            return Reflow(timesteps=levels, terms=terms, **told)
        case "jump":
            return Jump(terms=terms, steps=dataset.student_steps, **told)
        case "x0":
            return X0(terms=terms, steps=dataset.student_steps, **told)
        case "kd":
            return Kd(terms=terms, guidance=dataset.teacher_guidance)
        case "kd_w":
            weights = {} if guidance is None else {"weights": range_of(guidance, dataset.path)}
            return KdW(terms=terms, guidance=dataset.teacher_guidance, **weights)
        case "direct_distill" | "direct_distill:train":
            return DirectDistill(
                terms=terms,
                schedule=dataset.schedule,
                sigma_shift=dataset.sigma_shift,
                timestep_shift=timestep_shift,
                num_inference_steps=dataset.student_steps,
                **told,
            )


def range_of(guidance: Any, where: str) -> tuple[float, float]:
    if guidance == "row":
        raise JobError(
            f"{where}: embedded_guidance 'row' is nothing that kd_w can draw from: give a number "
            "or a range"
        )
    return guidance if isinstance(guidance, tuple) else (guidance, guidance)


def check_kind(objective: Objective, kind: str, task: str, where: str) -> None:
    """JobError for a dataset that has not what its task needs."""
    if kind not in objective.kinds:
        raise JobError(
            f"{where}: holds {kind}, of which task {task} cannot learn; it takes "
            f"{', '.join(sorted(objective.kinds))}"
        )
    if kind == "pictures" and task.endswith(":train"):
        raise JobError(
            f"{where}: holds pictures, and task {task} takes what `python -m jobs.distill` made of "
            f"them; for pictures there is {task.partition(':')[0]}"
        )
