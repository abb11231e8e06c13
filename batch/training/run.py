"""A training job from its datasets to its result: check, go on, learn, report."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from batch.errors import BatchError, JobError, RunFailed
from batch.output import RUN, Output, to_json
from batch.run import check_nodes
from batch.training.checkpoint import Checkpoints
from batch.training.curriculum import Curriculum
from batch.training.recipe import recipe_of
from batch.training.results import finished_at, unlike
from batch.training.worker import TrainWorker
from flux_engine.errors import EngineError
from schemas.training import TrainJob

logger = logging.getLogger(__name__)

Stop = Callable[[], bool]
Workers = Literal["local"] | int | tuple[int, int]


@dataclass(frozen=True)
class TrainReport:
    """Where a run ended. `resumed` is the step that it went on from."""

    step: int
    steps: int
    resumed: int

    @property
    def complete(self) -> bool:
        return self.step >= self.steps


def standing(job: TrainJob, curriculum: Curriculum) -> str:
    """What of the run is in the output; OutputError if it would be refused there."""
    output = Output(job.output_path, "parquet")
    output.check(lambda: recipe_of(job, curriculum), ())
    if finished_at(output.storage) >= curriculum.stream.steps:
        unlike(output.storage, job)
    done = max(finished_at(output.storage), Checkpoints(output.storage).last())
    return f"{done} of {curriculum.stream.steps} steps are done in {job.output_path}"


def train(
    job: TrainJob, curriculum: Curriculum, start: Callable[[], Stop], stop: Stop
) -> TrainReport:
    """Learn until the end, or until somebody says stop. `job` is resolved and `checked`. RunFailed
    for what ends it once it has begun.

    `start` starts Ray and answers how to ask whether to stop; it is called if ranks are to be
    processes of their own. Otherwise `stop` is asked, and Ray is not needed.
    """
    output = Output(job.output_path, "parquet")
    output.claim(recipe_of(job, curriculum))
    output.storage.sweep()
    steps = curriculum.stream.steps
    if finished_at(output.storage) >= steps and not unlike(output.storage, job):
        return TrainReport(steps, steps, steps)
    output.storage.replace(f"{RUN}/job.json", to_json(job.model_dump(mode="json")))
    count = workers_of(job, start_if_asked := Starter(start))
    if count == "local":
        with begun():
            worker = TrainWorker(job)
            worker.setup()
            resumed = worker.step
            outcome = worker.run(Asked(stop))
        return TrainReport(outcome.step, steps, resumed)
    from batch.training.ranks import run_on_ray  # Ray Train takes seconds to import

    stop = start_if_asked()
    check_nodes(output)
    checkpoints = Checkpoints(output.storage)
    resumed = checkpoints.last()
    run_on_ray(job, count, stop)
    done = finished_at(output.storage)
    if done < steps:
        done = max(done, checkpoints.last())
    return TrainReport(done, steps, resumed)


@contextmanager
def begun() -> Iterator[None]:
    """What ends a run that has begun is RunFailed, as it is on Ray: a job is refused before."""
    try:
        yield
    except RunFailed:
        raise
    except (BatchError, EngineError) as error:
        raise RunFailed(f"{type(error).__name__}: {error}") from error


class Starter:
    """Starts Ray once."""

    def __init__(self, start: Callable[[], Stop]) -> None:
        self._start = start
        self._stop: Stop | None = None

    def __call__(self) -> Stop:
        self._stop = self._stop or self._start()
        return self._stop


class Asked:
    """A signal of this process."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def stop(self) -> bool:
        return self._stop()

    def leaving(self, step: int, seconds: float) -> bool:  # noqa: ARG002
        return False


def workers_of(job: TrainJob, start: Callable[[], Stop]) -> Workers:
    """`local`, or how many ranks. A cluster is asked what it has; JobError if that is too little.

    `auto`: as many GPUs as divide a step's micro-batches; without any GPU one process, this one.
    """
    if job.workers == "local":
        return "local"
    if job.workers == "auto":
        if not os.environ.get("RAY_ADDRESS") and not torch.cuda.device_count():
            return "local"
        start()
        from batch.nodes import resources

        there = int(resources().get("GPU", 0)) if job.device != "cpu" else 0
        if not there:
            return "local"
        count = max(k for k in job.worker_counts if k <= there)
        if count < there:
            logger.warning(
                "GPUs stay idle: gradient_accumulation_steps is no multiple of their number",
                extra={"gpus": there, "workers": count},
            )
        return count
    start()
    from batch.nodes import resources

    least, most = job.worker_counts[0], job.worker_counts[-1]
    there_are = resources()
    gpus = int(there_are.get("GPU", 0)) if job.device != "cpu" else 0
    if job.device == "cuda" and not gpus:
        raise JobError("device is cuda and the cluster has no GPU")
    of, name = (gpus, "GPUs") if gpus else (int(there_are.get("CPU", 0)), "CPUs")
    if least > of:
        raise JobError(f"workers: {least} asked for, and the cluster has {of} {name}")
    return least if least == most else (least, most)
