"""A look at all of a job before anything of it is begun: nothing is loaded, nothing is written.

Whatever a rank would refuse later has to be refused here, where no output is bound to it yet.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from batch.targets.text import Told
from batch.training.curriculum import Curriculum
from batch.training.idle import refuse_idle
from batch.training.learner import options_of, preset_of, trained_on
from batch.training.models import ModelParts
from flux_engine.encode import TextKey
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.text import load_tokenizer
from flux_engine.models.vae import AutoEncoder
from flux_engine.training.optimizer import make_optimizer
from flux_engine.weights.lora.models import Models
from schemas.training import TrainJob

logger = logging.getLogger(__name__)


class BlankTexts:
    """Texts of the right shapes that say nothing."""

    def __init__(self, dit: FluxTransformer) -> None:
        self.spec = dit.spec

    def __getitem__(self, key: TextKey) -> Told:
        caption, length = key
        t5 = torch.zeros(length, self.spec.text_width)
        return Told("", caption, t5, torch.zeros(self.spec.pooled_width))


class BlankEncoder:
    """Latents of the right shapes that show nothing."""

    def __init__(self, vae: nn.Module | None) -> None:
        self.vae = vae

    def __call__(self, pixels: Tensor) -> Tensor:
        assert isinstance(self.vae, AutoEncoder)
        spec = self.vae.spec
        height, width = (side // spec.factor for side in pixels.shape[1:])
        return torch.zeros(spec.latent_channels, height, width)


def checked(job: TrainJob) -> Curriculum:
    """The job's datasets; EngineError and BatchError of all layers for what cannot be done.
    `job` is resolved."""
    parts = ModelParts(job)
    shapes = parts.shapes()
    dit = shapes["dit"]
    assert isinstance(dit, FluxTransformer)
    curriculum = Curriculum(job, parts, BlankTexts(dit), BlankEncoder(shapes.get("vae")))
    needed(job, curriculum)
    refuse_idle(job, curriculum, dit.spec)
    for course in curriculum.courses:
        for reject in course.source.rejects():
            logger.warning("row left out", extra={"row": reject.where, "why": reject.reason})
    preset = preset_of(job, dit)
    if preset is not None:
        Models(dit).names(preset)
    trained_on(dit, job)
    make_optimizer(
        job.optimizer.kind,
        {"one": nn.Parameter(torch.zeros(2, 2))},
        rate=job.learning_rate,
        weight_decay=job.weight_decay,
        options=options_of(job),
    )
    seen: set[int] = set()
    for number in range(curriculum.stream.steps * curriculum.stream.per_step):
        dataset, _ = curriculum.stream.turn(number)
        if dataset not in seen:  # what the first samples lack, the others do as well
            seen.add(dataset)
            curriculum.maker(curriculum.stream.at(number))
        if len(seen) == len(curriculum.courses):
            break
    return curriculum


def needed(job: TrainJob, curriculum: Curriculum) -> None:
    """JobError if a part of the model is not among the job's files and rows or samples ask for
    it; SourceError for a tokenizer that cannot be opened."""
    parts = curriculum.parts
    if curriculum.pictures:
        parts.need("vae", f"pictures ({', '.join(curriculum.names)}) are to be encoded")
    if job.sample_prompts:
        parts.need("vae", "sample_prompts are to be shown")
    if wanted := curriculum.wanted:
        told = f"{len(wanted)} captions have no text, as {wanted[0][0]!r}"
        for role in ("clip", "t5"):
            parts.need(role, told)
    folders = set(parts.tokenizers.values()) if wanted else set()
    for given in (job.tokenizer_1_path, job.tokenizer_2_path):
        folders |= {Path(given)} if given is not None else set()
    for folder in sorted(folders):
        load_tokenizer(folder)
