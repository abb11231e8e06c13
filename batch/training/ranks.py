"""A run on Ray Train: ranks that make up one worker group, started again where one is lost."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from batch.errors import BatchError, RunFailed
from batch.log import show_fields
from batch.output import RUN
from batch.run import run_name
from batch.storage import Storage
from batch.training.worker import TrainWorker
from flux_engine.errors import EngineError
from flux_engine.training.reduction import Ordered, Reduction, Summed
from schemas.training import TrainJob

ASKED_EVERY_S = 0.2
# whether a machine goes away is asked of all ranks at once: after each step that takes this long,
LEAVING_S = 1.0
LEAVING_EVERY = 10  # and where they are shorter, after so many
STATE = f"{RUN}/ray"  # what Ray Train keeps of a run while it runs

logger = logging.getLogger(__name__)


class Flag:
    """What the driver and the ranks tell each other. An actor."""

    def __init__(self) -> None:
        self.asked = False
        self.fault: tuple[str, str] | None = None

    def ask(self) -> None:
        """All ranks are to keep where they are, and end."""
        self.asked = True

    def is_asked(self) -> bool:
        return self.asked

    def fail(self, name: str, message: str) -> None:
        """A rank met something that will be there again, whoever tries."""
        self.fault = self.fault or (name, message)

    def failed(self) -> tuple[str, str] | None:
        return self.fault


class RankSignals:
    """Of a rank on Ray. What the flag says is asked without waiting for the answer."""

    def __init__(self, flag: Any) -> None:
        self.flag = flag
        self._waiting = flag.is_asked.remote()
        self._asked = False
        self._left = False

    def stop(self) -> bool:
        ready, _ = ray.wait([self._waiting], timeout=0)
        if ready and not self._asked:
            self._asked = ray.get(self._waiting)
            self._waiting = self.flag.is_asked.remote()
        return self._asked

    def leaving(self, step: int, seconds: float) -> bool:
        """Once: a checkpoint more than one helps nobody."""
        if self._left or not is_asked_after(step, seconds):
            return False
        self._left = ray.train.get_preemption_info() is not None
        if self._left:
            logger.warning("a machine is about to be taken away", extra={"step": step})
        return self._left


def is_asked_after(step: int, seconds: float) -> bool:
    """Whether ranks ask each other after this step, of which all are told the same seconds."""
    return seconds >= LEAVING_S or step % LEAVING_EVERY == 0


def rank_main(config: dict[str, Any]) -> None:
    """What each rank does. Faults that no other try would mend are told to the flag, so that the
    next attempt does not repeat them."""
    show_fields(logging.getLogger("batch"))
    flag = config["flag"]
    if ray.get(flag.failed.remote()) is not None:
        raise RunFailed("an earlier attempt met a fault that is there again")
    job = config["job"]
    device = torch.device("cuda", torch.cuda.current_device()) if config["gpu"] else None
    place = device or torch.device("cpu")
    reduction: Reduction = (Ordered if job.ordered else Summed)(
        place, job.gradient_accumulation_steps
    )
    worker = TrainWorker(job, reduction=reduction, device=str(place))
    fault: Exception | None = None
    try:
        worker.setup()
    except (BatchError, EngineError) as error:
        fault = told(flag, error)
    if reduction.any(mine=fault is not None):
        return  # all ranks: another attempt would end here again
    try:
        worker.run(RankSignals(flag))
    except RunFailed as error:  # which all ranks raise
        told(flag, error)
    except (BatchError, EngineError) as error:
        told(flag, error)
        raise  # so that the others do not wait for this one


def told(flag: Any, error: Exception) -> Exception:
    """Let the driver know."""
    ray.get(flag.fail.remote(type(error).__name__, str(error)))
    return error


def run_on_ray(job: TrainJob, workers: int | tuple[int, int], stop: Callable[[], bool]) -> None:
    """Until it is finished, or all ranks have stopped. RunFailed if ranks keep being lost, or for
    what a rank said."""
    gpu = uses_gpus(job)
    flag = ray.remote(num_cpus=0)(Flag).remote()
    storage = Storage(job.output_path)
    name = run_name()
    state: dict[str, Any] = {"storage_path": storage.path(STATE)}
    if storage.local:
        Path(storage.path(STATE)).mkdir(parents=True, exist_ok=True)
    else:
        state["storage_filesystem"] = storage.fs
    # ranks find relative paths where the driver does
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    trainer = TorchTrainer(
        rank_main,
        train_loop_config={"job": job, "flag": flag, "gpu": gpu},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=name, failure_config=FailureConfig(max_failures=job.max_failures), **state
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    )
    try:
        fit(trainer, flag, stop)
    finally:
        storage.remove_folder(f"{STATE}/{name}")


def fit(trainer: TorchTrainer, flag: Any, stop: Callable[[], bool]) -> None:
    """Run it beside this thread, which signals reach, and pass a wish to stop on."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  it is raised again in the other thread
            raised.append(error)

    thread = threading.Thread(target=body, name="trainer", daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        if not asked and stop():
            asked = True
            ray.get(flag.ask.remote())
        thread.join(ASKED_EVERY_S)
    fault = ray.get(flag.failed.remote())
    if fault is not None:
        raise RunFailed(f"{fault[0]}: {fault[1]}") from None
    if not raised:
        return
    if isinstance(raised[0], TrainingFailedError):
        words = str(raised[0]).strip().splitlines()
        raise RunFailed(f"ranks keep failing: {words[-1] if words else raised[0]}") from raised[0]
    raise raised[0]


def uses_gpus(job: TrainJob) -> bool:
    """Whether ranks are to have one each; the cluster must have some."""
    return job.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
