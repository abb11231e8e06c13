"""One rank of a training run: a plain class, for which it does not matter who calls it."""

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from batch.errors import RunFailed
from batch.storage import Storage
from batch.training.checkpoint import Checkpoint, Checkpoints
from batch.training.curriculum import Curriculum
from batch.training.events import Events
from batch.training.learner import Learner
from batch.training.loader import Loader
from batch.training.metrics import Metrics
from batch.training.models import ModelParts
from batch.training.results import Results
from batch.training.texts import Texts
from flux_engine.assembly import choose_device
from flux_engine.encode import PictureCoder
from flux_engine.training.objective import Batch
from flux_engine.training.reduction import Alone, Reduction
from flux_engine.training.repeatable import repeat_on_card
from flux_engine.training.stepper import MicroBatch, StepFacts
from schemas.training import TrainJob

logger = logging.getLogger(__name__)


class Signals(Protocol):
    """What reaches a rank from outside, asked after each step."""

    def stop(self) -> bool:
        """Whether this rank has been asked to end."""

    def leaving(self, step: int, seconds: float) -> bool:
        """Whether some rank's machine is about to be taken away; all ranks are answered alike.
        `seconds` have gone by since the last step ended, on the slowest rank: all are told so."""


class Quiet:
    """Nothing does."""

    def stop(self) -> bool:
        return False

    def leaving(self, step: int, seconds: float) -> bool:  # noqa: ARG002
        return False


@dataclass(frozen=True)
class Outcome:
    """Where a rank ended: after how many steps, of how many."""

    step: int
    steps: int

    @property
    def complete(self) -> bool:
        return self.step >= self.steps


class Autoencoder:
    """The autoencoder, which is loaded when the first picture is to be encoded. Threads may ask at
    once: one of them loads it, and one picture at a time is encoded."""

    def __init__(self, parts: ModelParts, device: torch.device) -> None:
        self.parts, self.device = parts, device
        self._coder: PictureCoder | None = None
        self._lock = threading.RLock()

    def coder(self) -> PictureCoder:
        with self._lock:
            if self._coder is None:
                why = "there are pictures to encode or to show"
                self._coder = self.parts.coder(self.device, why)
            return self._coder

    def __call__(self, pixels: Tensor) -> Tensor:
        """The latent of one picture: its mean, in a batch of its own, whoever its neighbours."""
        with self._lock:
            return self.coder().encode([pixels], 1, None)[0]


class TrainWorker:
    """Sets up, goes on from the last checkpoint, and learns until the end or until it is told to
    stop. Rank 0 writes what is written. `job` is resolved."""

    def __init__(
        self, job: TrainJob, *, reduction: Reduction | None = None, device: str | None = None
    ) -> None:
        self.job, self.reduction = job, reduction or Alone()
        self.device = choose_device(device or job.device)
        self.storage = Storage(job.output_path)
        self.checkpoints = Checkpoints(self.storage, job.keep_checkpoints)
        self.first = self.reduction.rank == 0
        self.step = self.skipped = 0
        self.seconds = 0.0  # of all ranks together, those of earlier runs counted
        self._kept = -1  # the last step that has a checkpoint

    def setup(self) -> None:
        """Open datasets, have captions encoded, load the model, take up the last checkpoint."""
        if self.job.ordered and self.device.type == "cuda":
            repeat_on_card()
        self.parts = ModelParts(self.job)
        self.texts = Texts(self.parts.encoders)
        self.autoencoder = Autoencoder(self.parts, self.device)
        self.curriculum = Curriculum(self.job, self.parts, self.texts, self.autoencoder)
        stream = self.curriculum.stream
        why = "there are captions that no dataset has the text of"
        self.texts.encode(
            self.curriculum.wanted, lambda: self.parts.text(self.device, why), self.device
        )
        self.learner = Learner(self.job, self.parts, self.device, self.reduction, stream.steps)
        self.loader = Loader(
            stream,
            self.curriculum.maker,
            rank=self.reduction.rank,
            world=self.reduction.world,
            threads=self.job.dataset_num_workers,
        )
        self._take_up(self.checkpoints.latest())

    def _take_up(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self.learner.restore(checkpoint.state, self.storage.uri)
        self.step = self._kept = checkpoint.step
        self.skipped = int(checkpoint.told["skipped"])
        self.seconds = float(checkpoint.told["seconds"])
        self.curriculum.pass_over(checkpoint.told.get("passed_over", ()))
        logger.info("going on", extra={"step": self.step, "of": self.curriculum.stream.steps})

    def run(self, signals: Signals | None = None) -> Outcome:
        """EngineError and BatchError for what ends the run; a rerun goes on from the last
        checkpoint."""
        signals = signals or Quiet()
        steps = self.curriculum.stream.steps
        if self.first:
            self.metrics = Metrics(self.storage, self.step)
            self.events = Events(self.storage, self.step)
            self.results = Results(
                self.job,
                self.storage,
                self.curriculum,
                self.learner,
                self.autoencoder.coder,
                self.texts,
            )
        ended = time.monotonic()
        try:
            for work in self.loader.steps(self.step):
                self._one(work)
                mine = [float(signals.stop()), time.monotonic() - ended]
                ended = time.monotonic()
                asked, seconds = self.reduction.most(mine)
                stopping = bool(asked)
                due = self.step % self.job.checkpoint_steps == 0 or self.step == steps
                if due or stopping or signals.leaving(self.step, seconds):
                    self._keep()
                if stopping and self.step < steps:
                    logger.warning("stopped", extra={"step": self.step, "of": steps})
                    return Outcome(self.step, steps)
            self._keep()
            if self.first:
                self.results.finish(self.step, self.told())
        finally:
            if self.first:
                self.metrics.write()
                self.events.close()
        return Outcome(self.step, steps)

    def _one(self, work: list[Any]) -> None:
        """One step, and what is told of it."""
        started = time.monotonic()
        facts = self.learner.stepper.step(
            self.step,
            (
                MicroBatch(
                    draft.number % self.job.gradient_accumulation_steps,
                    self.curriculum.objectives[draft.dataset],
                    Batch.of(examples, self.device),
                )
                for draft, examples in work
            ),
        )
        seconds = time.monotonic() - started
        self.step += 1
        self.seconds += seconds * self.reduction.world
        if self.first:
            self._tell(facts, seconds)
        if facts.skipped:
            self._left_out(facts)
        if self.first:  # of a step that is left out as well: it counts
            self.results.after(self.step)

    def _left_out(self, facts: StepFacts) -> None:
        self.skipped += 1
        who = ", ".join(facts.broken) or "no sample's loss, but the gradient"
        if self.skipped > self.job.nan.skip:
            raise RunFailed(
                f"step {self.step}: NaN or infinity in {who}; {self.skipped} steps broke, and "
                f"nan.skip is {self.job.nan.skip}"
            )
        logger.warning("step left out: NaN or infinity", extra={"step": self.step, "in": who})

    def _tell(self, facts: StepFacts, seconds: float) -> None:
        job = self.job
        samples = job.batch_size * job.gradient_accumulation_steps
        losses = self._by_dataset(facts)
        line: dict[str, Any] = {
            "step": self.step,
            "loss": finite(facts.loss),
            "losses": losses,
            "rate": facts.rate,
            "grad_norm": finite(facts.grad_norm),
            "seconds": round(seconds, 6),
            "samples_per_second": round(samples / max(seconds, 1e-9), 3),
        }
        if self.device.type == "cuda":
            line["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        if facts.skipped:
            line["broken"] = list(facts.broken)
        self.metrics.add(line)
        scalars = {"loss": line["loss"], "rate": facts.rate, "grad_norm": line["grad_norm"]}
        scalars |= {f"loss/{name}": loss for name, loss in losses.items()}
        told = {name: value for name, value in scalars.items() if value is not None}
        self.events.add(self.step, told)
        if self.step == 1 or self.step % 10 == 0:
            logger.info("step", extra={n: line[n] for n in ("step", "loss", "seconds")})

    def _by_dataset(self, facts: StepFacts) -> dict[str, float | None]:
        """The mean loss of each dataset that took part in the step."""
        stream = self.curriculum.stream
        found: dict[str, list[float]] = {}
        for i, loss in enumerate(facts.losses):
            dataset, _ = stream.turn(facts.step * stream.per_step + i)
            found.setdefault(self.curriculum.names[dataset], []).append(loss)
        return {name: finite(sum(losses) / len(losses)) for name, losses in found.items()}

    def told(self) -> dict[str, Any]:
        """What a checkpoint says beside the state."""
        return {
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "seed": self.job.seed,
            "passed_over": self.curriculum.passed_over(),
        }

    def _share_passed_over(self) -> None:
        """Have all ranks know of rows that one of them could not read."""
        mine = [f"{dataset} {row}" for dataset, row in self.curriculum.passed_over()]
        for told in self.reduction.names(mine):
            dataset, row = told.split()
            self.curriculum.pass_over([(int(dataset), int(row))])

    def _keep(self) -> None:
        """A checkpoint of this step, unless there is one. Ranks are alike: the first writes."""
        if self._kept == self.step:
            return
        self._kept = self.step
        self._share_passed_over()
        if self.first:
            self.metrics.write()
            self.events.keep()
            self.checkpoints.write(Checkpoint(self.step, self.learner.stepper.state(), self.told()))
            logger.info("checkpoint", extra={"step": self.step})


def finite(value: float) -> float | None:
    """A number that JSON has a word for."""
    return value if math.isfinite(value) else None
