"""What a target dataset will cost: bytes exactly as far as tensors go, card seconds as planned."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from batch.shards import Shard
from flux_engine.batching import Bucket
from flux_engine.errors import SettingError
from flux_engine.paper import Paper, planned
from flux_engine.request import GenerationRequest
from flux_engine.sampling.schedule import shift_of
from flux_engine.sampling.trace import bounds
from flux_engine.vram.planner import Plan
from schemas.jobs import DistillJob
from schemas.targets import (
    FROM_PROMPTS,
    CacheTarget,
    FeatureTarget,
    PathTarget,
    Target,
    VelocityTarget,
)

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
MASK_ITEMSIZE = 2  # float16, whatever the job stores
FACTOR, CHANNELS, CELL = 8, 16, 16  # of every FLUX.1 autoencoder, and pixels to a token's side
WORDS = 90  # bytes a row besides its tensors, and of a file besides its rows, as measured
FOOTER = 14_200
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Predicted; seconds are None where there is no card to plan for."""

    rows: int
    data_bytes: int
    texts: int
    text_bytes: int
    card_seconds: float | None

    @property
    def bytes(self) -> int:
        return self.data_bytes + self.text_bytes

    def lines(self) -> list[str]:
        """In words, for a dry run."""
        a_row = self.data_bytes / max(self.rows, 1)
        seconds = (
            "no card to plan for"
            if self.card_seconds is None
            else f"{self.card_seconds / 3600:.2f} GPU-hours"
        )
        return [
            f"predicted: {self.data_bytes / GIB:.3f} GiB of targets "
            f"({a_row / 2**20:.3f} MiB a row), {self.text_bytes / GIB:.3f} GiB "
            f"of {self.texts} texts, {seconds}",
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def tensor_bytes(target: Target, steps: int, height: int, width: int, itemsize: int) -> int:
    """Of one row's tensors."""
    latent = CHANNELS * (height // FACTOR) * (width // FACTOR) * itemsize
    match target:
        case CacheTarget():
            cells = (height // FACTOR) * (width // FACTOR)
            return latent * (2 if target.moments else 1) + MASK_ITEMSIZE * cells * target.mask
        case PathTarget():
            return latent * (len(bounds(steps, target.segments)) - 1)
        case VelocityTarget():
            answers = max(len(target.guidance), 1) + target.unconditional
            return latent * (1 + target.count * answers)
        case _:
            return latent


def feature_bytes(target: FeatureTarget, tokens: int, text: int, itemsize: int) -> int:
    """Of one row's taps."""
    counts = {"img": tokens, "txt": text}
    each = [counts.get(name.rpartition(".")[2], tokens + text) for name in target.taps]
    return sum(each) * target.width * target.count * itemsize


def cost_of(job: DistillJob, shards: Sequence[Shard]) -> Cost:
    """Of all rows of a plan, whatever is finished of it; rows count at the job's own settings."""
    told = job.sampling
    assert told.num_inference_steps is not None
    assert told.t5_sequence_length is not None
    itemsize = ITEMSIZE[job.dtype]
    sizes = Counter[str]()
    for shard in shards:
        sizes[shard.bucket] += shard.pictures(job.samples_per_row)
    paper = planned(job.engine)
    known = paper.planning.machine is not None
    data, seconds, a_text = FOOTER * len(shards), 0.0, 0.0
    for bucket, rows in sizes.items():
        height, width = (int(side) for side in bucket.split("x"))
        a_row = tensor_bytes(job.target, told.num_inference_steps, height, width, itemsize)
        if isinstance(job.target, FeatureTarget):
            tokens = (height // CELL) * (width // CELL)
            a_row += feature_bytes(job.target, tokens, told.t5_sequence_length, itemsize)
        data += rows * (a_row + WORDS)
        if known and (plan := plan_of(job, paper, height, width)):
            seconds += rows * row_seconds(job, plan)
            a_text = max(a_text, plan.text_seconds)
    texts = sum(len(shard.texts) for shard in shards)
    seconds += texts * a_text
    return Cost(
        sum(sizes.values()), data, texts, texts * text_bytes(job), seconds if known else None
    )


@cache
def widths(job: DistillJob) -> Mapping[str, int]:
    """Of what the text encoders say."""
    from flux_engine.models.text import output_width
    from flux_engine.paper import models_of

    models = models_of(job.engine)[0]
    return {name: output_width(models[name]) for name in ("t5", "clip")}


def text_bytes(job: DistillJob) -> int:
    """Of one caption's text."""
    told, itemsize = widths(job), ITEMSIZE[job.engine.torch_dtype]
    length = job.sampling.t5_sequence_length or 0
    return (length * told["t5"] + told["clip"]) * itemsize


def plan_of(job: DistillJob, paper: Paper, height: int, width: int) -> Plan | None:
    """How rows of this size would be asked for; None for a size that does not fit."""
    told = job.sampling
    guided = told.cfg_scale != 1.0 and job.target.kind in FROM_PROMPTS
    request = GenerationRequest(
        prompt="",
        seed=0,
        height=height,
        width=width,
        num_inference_steps=told.num_inference_steps or 1,
        t5_sequence_length=told.t5_sequence_length or 512,
        cfg_scale=told.cfg_scale if guided else 1.0,
        schedule=told.schedule,
        sigma_shift=told.sigma_shift,
    )
    tokens = (height // CELL) * (width // CELL)
    bucket = Bucket.of(request, shift_of(request.schedule, tokens, request.sigma_shift, True))
    try:
        return paper.planning.plan(bucket)
    except SettingError:
        return None


def row_seconds(job: DistillJob, plan: Plan) -> float:
    """Seconds of a card for one row, its text apart: the transformer's passes, those of rows that
    are asked about again, and the autoencoder's where it takes part."""
    steps, target = plan.work.steps, job.target
    a_pass = plan.step_seconds / plan.micro_batch
    coded = plan.seconds - steps * a_pass  # of decoding, which is more than encoding
    match target:
        case CacheTarget():
            return coded
        case PathTarget():
            passes, again = steps, steps / (len(bounds(steps, target.segments)) - 1)
        case VelocityTarget():
            answers = max(len(target.guidance), 1) + target.unconditional
            passes, again = target.count * answers, 1
        case FeatureTarget():
            passes, again = target.count, 1
        case _:
            passes, again = steps, steps
    pictures = 0.0 if target.kind in FROM_PROMPTS else coded
    return a_pass * (passes + job.check_share * again) + pictures
