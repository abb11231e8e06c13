"""What a training job would do and hold, before it does: steps, samples, parameters, memory."""

import os
from collections.abc import Iterator

import torch

from batch.training.curriculum import Curriculum
from batch.training.learner import checkpointing_of, keeps_base, shape_of
from flux_engine.latents import PATCH
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.training.layers import linear_layers
from schemas.training import TrainJob

STATES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}  # bytes for each number that is trained
CELL = 8


def foreseen(job: TrainJob, curriculum: Curriculum) -> Iterator[str]:
    """Line by line."""
    stream = curriculum.stream
    per_step = job.batch_size * stream.per_step
    yield f"steps: {stream.steps}, of {stream.per_step} micro-batches of {job.batch_size} samples ({per_step} samples)"  # noqa: E501
    yield f"workers: {workers(job)}"
    counts = stream.counts()
    for name, course, count in zip(curriculum.names, curriculum.courses, counts, strict=True):
        batches = course.share.batches
        sizes = ", ".join(f"{h}x{w}: {len(rows)} rows" for (h, w), rows in batches.buckets.items())
        yield (
            f"dataset {name} ({course.source.kind}, {job.task_of(course.dataset)}): "
            f"{count * job.batch_size} samples; {sizes}"
        )
    if wanted := curriculum.wanted:
        yield f"captions to encode: {len(wanted)}"
    dit = curriculum.parts.shapes()["dit"]
    assert isinstance(dit, FluxTransformer)
    yield from parameters(job, dit)
    yield from (f"memory: {part} {size}" for part, size in memory(job, curriculum, dit).items())


def workers(job: TrainJob) -> str:
    """How many there will be, and why. No cluster is asked."""
    n = job.gradient_accumulation_steps
    numbers = ", ".join(map(str, job.worker_counts))
    why = f"their number divides gradient_accumulation_steps ({n})"
    match job.workers:
        case "local":
            return "this process"
        case "auto":
            gpus = torch.cuda.device_count()
            if job.device == "cpu" or not (gpus or os.environ.get("RAY_ADDRESS")):
                return "this process; no GPU is used"
            if os.environ.get("RAY_ADDRESS"):
                return f"as many as the cluster has GPUs for, of {numbers}: {why}"
            return f"{max(k for k in job.worker_counts if k <= gpus)} on {gpus} GPUs: {why}"
        case int(count):
            return str(count)
        case _:
            return f"as many as there is room for, {numbers}: {why}"


def parameters(job: TrainJob, dit: FluxTransformer) -> Iterator[str]:
    """How many are trained, by pattern."""
    if job.trainable_models:
        yield f"trainable: {sum(p.numel() for p in dit.parameters())} parameters, the transformer"
        return
    layers = linear_layers(dit.spec)
    counts: dict[str, list[int]] = {}
    for layer, (rank, alpha) in shape_of(job).of(dit.spec).items():
        pattern = ".".join("*" if part.isdigit() else part for part in layer.split(".")[:2])
        pattern = ".".join([pattern, *layer.split(".")[2:]])
        told = f"{pattern} (rank {rank}, alpha {alpha:g})"
        entry = counts.setdefault(told, [0, 0])
        entry[0] += 1
        entry[1] += rank * sum(layers[layer])
    yield f"trainable: {sum(size for _, size in counts.values())} parameters"
    for told, (number, size) in counts.items():
        yield f"  {told}: {size} in {number} layers"


def trained_numbers(job: TrainJob, dit: FluxTransformer) -> int:
    if job.trainable_models:
        return sum(p.numel() for p in dit.parameters())
    layers = linear_layers(dit.spec)
    return sum(rank * sum(layers[n]) for n, (rank, _) in shape_of(job).of(dit.spec).items())


def memory(job: TrainJob, curriculum: Curriculum, dit: FluxTransformer) -> dict[str, int]:
    """Bytes on each worker's device by part; of activations an estimate, for the largest size and
    the longest captions."""
    numbers = trained_numbers(job, dit)
    base = sum(p.numel() for p in dit.parameters())
    width = dtype_bytes(job.master_dtype if job.trainable_models else job.torch_dtype)
    master = dtype_bytes(job.master_dtype)
    state = STATES.get(job.optimizer.kind, 8)
    parts = {
        "base": base * (1 if job.fp8_models else width),
        "kept base": base * width if keeps_base(job) else 0,
        "trained": 0 if job.trainable_models else 4 * numbers,
        "gradients": numbers * master * (1 + job.ordered * (curriculum.stream.per_step > 1)),
        "optimizer": numbers * state * master // 4,
        "average": 4 * numbers if job.ema else 0,
        "activations": activations(job, curriculum, dit.spec),
    }
    return parts | {"all": sum(parts.values())}


def activations(job: TrainJob, curriculum: Curriculum, spec: FluxSpec) -> int:
    """What blocks keep for the way back: all of it, or what goes into each and one block's all.

    Counted in values of a token: of a double block 12 D + 3 I on each stream, of a single one
    8 D + 3 I, where D is the width and I the MLP's.
    """
    pixels = [h * w for course in curriculum.courses for h, w in course.share.batches.buckets]
    length = max(course.source.longest() for course in curriculum.courses)
    tokens = max(pixels) // (CELL * PATCH) ** 2 + length
    size = dtype_bytes(job.torch_dtype) * tokens * job.batch_size
    double, single = (n * spec.width + 3 * spec.inner for n in (12, 8))
    blocks = spec.double_blocks + spec.single_blocks
    match checkpointing_of(job):
        case "none":
            return size * (spec.double_blocks * double + spec.single_blocks * single)
        case "blocks":
            return size * (blocks * spec.width + max(double, single))
        case "offload":
            return size * (2 * spec.width + max(double, single))


def dtype_bytes(name: str) -> int:
    return int(getattr(torch, name).itemsize)
