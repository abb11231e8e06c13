"""Training jobs that take seconds, and what they leave behind."""

from pathlib import Path
from typing import Any

from torch import Tensor

from batch.storage import Storage
from batch.training.checkpoint import Checkpoint, Checkpoints
from batch.training.recipe import resolved
from batch.training.worker import Outcome, Signals, TrainWorker
from schemas.training import TrainJob

VALUES: dict[str, Any] = {
    "model": "flux-shapes",
    "torch_dtype": "float32",
    "device": "cpu",
    "workers": "local",
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "lora_rank": 4,
    "lora_target_modules": ["img_attn.qkv", "single_blocks.*.linear1"],
    "learning_rate": 1e-3,
    "checkpoint_steps": 2,
    "ema": 0.9,
}


def lesson(output: Path | str, dataset: Path, **values: Any) -> TrainJob:
    """A resolved job."""
    told = {"output_path": str(output), **VALUES, **values}
    if "datasets" not in values:
        told["dataset"] = str(dataset)
    return resolved(TrainJob.parse({k: v for k, v in told.items() if v is not None}))


def learned(job: TrainJob, signals: Signals | None = None) -> tuple[TrainWorker, Outcome]:
    """A run of one rank, from where it is to where it ends."""
    worker = TrainWorker(job)
    worker.setup()
    return worker, worker.run(signals)


def checkpoint(job: TrainJob) -> Checkpoint:
    found = Checkpoints(Storage(job.output_path)).latest()
    assert found is not None
    return found


def tensors(found: Checkpoint) -> dict[str, Tensor]:
    """All that a checkpoint holds, by part and name."""
    state = found.state
    return {
        f"{part} {name}": tensor
        for part in ("trainable", "optimizer", "average")
        for name, tensor in getattr(state, part).items()
    }
