"""The model that learns, with what is trained on it, its optimizer and its steps."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from batch.errors import OutputError
from batch.training.models import ModelParts
from flux_engine.models.dit import FluxTransformer
from flux_engine.training.full import TrainedWeights
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.net import Checkpointing, Net, narrow_base
from flux_engine.training.optimizer import make_optimizer
from flux_engine.training.preset import merge
from flux_engine.training.rates import Rates
from flux_engine.training.reduction import Reduction
from flux_engine.training.stepper import Stepper, TrainingState
from flux_engine.weights.lora.file import Lora
from flux_engine.weights.lora.models import Models
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.read import lora_file, read_lora
from flux_engine.weights.source import ModelSource, fetch
from schemas.training import TrainJob

logger = logging.getLogger(__name__)


class Learner:
    """Everything that a step needs but rows. SettingError and CheckpointError as of the engine."""

    def __init__(
        self,
        job: TrainJob,
        parts: ModelParts,
        device: torch.device,
        reduction: Reduction,
        steps: int,
    ) -> None:
        self.job = job
        compute = getattr(torch, job.torch_dtype)
        self.dit = prepared(job, parts, device)
        self.trained = trained_on(self.dit, job)
        self.net = Net(self.dit, self.trained, compute=compute, checkpointing=checkpointing_of(job))
        parameters = self.net.trainable
        rates = Rates(
            rate=job.learning_rate,
            steps=steps,
            shape=job.lr_schedule.kind,
            warmup_steps=job.lr_schedule.warmup_steps,
            floor=job.lr_schedule.floor,
        )
        optimizer = make_optimizer(
            job.optimizer.kind,
            parameters,
            rate=job.learning_rate,
            weight_decay=job.weight_decay,
            options=options_of(job),
        )
        self.stepper = Stepper(
            self.net,
            parameters,
            optimizer,
            rates,
            reduction,
            total=job.gradient_accumulation_steps,
            averaging=job.ema,
            clip=job.max_grad_norm,
        )

    def restore(self, state: TrainingState, where: str) -> None:
        """OutputError for a state of other parameters, naming them."""
        here = {name: tuple(p.shape) for name, p in self.stepper.parameters.items()}
        there = {name: tuple(t.shape) for name, t in state.trainable.items()}
        if here != there:
            names = sorted(n for n in {*here, *there} if here.get(n) != there.get(n))
            raise OutputError(f"{where}: its checkpoint is of other parameters: "
                              f"{', '.join(names[:5])}")  # fmt: skip
        self.stepper.restore(state)

    def result(self) -> Mapping[str, Tensor]:
        """What is to be written: the average where there is one."""
        average = self.stepper.average
        if average is not None:
            return average.tensors
        return {name: p.detach() for name, p in self.stepper.parameters.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model is what will be written."""
        average = self.stepper.average
        if average is not None:
            average.swap()
        try:
            yield
        finally:
            if average is not None:
                average.swap()


def shape_of(job: TrainJob) -> LoraShape:
    return LoraShape(
        targets=job.lora_target_modules,
        rank=job.lora_rank,
        alpha=job.lora_alpha,
        ranks=job.ranks,
        alphas=job.alphas,
    )


def checkpointing_of(job: TrainJob) -> Checkpointing:
    if not job.use_gradient_checkpointing:
        return "none"
    return "offload" if job.use_gradient_checkpointing_offload else "blocks"


def options_of(job: TrainJob) -> dict[str, Any]:
    told = {"betas": job.optimizer.betas, "eps": job.optimizer.eps}
    return {k: v for k, v in told.items() if v is not None} | dict(job.optimizer.options)


def prepared(job: TrainJob, parts: ModelParts, device: torch.device) -> FluxTransformer:
    """The transformer on the device as training begins: with a preset LoRA in its weights, in
    eight bits where that is asked."""
    whole = bool(job.trainable_models)
    dit = parts.dit(getattr(torch, job.master_dtype if whole else job.torch_dtype))
    preset = preset_of(job, dit)
    if preset is not None:
        merge(Models(dit), [(preset, 1.0)])
    if job.fp8_models:
        narrow_base(dit)
    return dit.to(device)


def preset_of(job: TrainJob, dit: FluxTransformer) -> Lora | None:
    if job.preset_lora_path is None:
        return None
    return read_lora(lora_file(fetch(ModelSource(job.preset_lora_path))), Sizes(dit.spec))


def keeps_base(job: TrainJob) -> bool:
    """Whether the transformer's weights are trained, and some rows ask what they were."""
    compared = any(job.task_of(dataset) == "prior" for dataset in job.datasets)
    return bool(job.trainable_models) and compared


def trained_on(dit: FluxTransformer, job: TrainJob) -> TrainedLora | TrainedWeights:
    if job.trainable_models:
        master = getattr(torch, job.master_dtype)
        return TrainedWeights(dit, master_dtype=master, keep_base=keeps_base(job))
    trained = TrainedLora(dit, shape_of(job), seed=job.seed)
    if job.lora_checkpoint is not None:
        file = lora_file(fetch(ModelSource(job.lora_checkpoint)))
        if fresh := trained.load(read_lora(file, Sizes(dit.spec))):
            logger.warning(
                "lora_checkpoint says nothing of some layers, which begin anew",
                extra={"lora_checkpoint": str(file), "layers": len(fresh), "first": fresh[0]},
            )
    return trained
