"""A job's datasets, opened and checked: what is learned from which rows, in which order."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from batch.errors import JobError
from batch.targets.batches import BucketBatches
from batch.training.loader import Maker
from batch.training.material import Encode, PictureSource, TargetSource, TextsByKey
from batch.training.models import ModelParts
from batch.training.objectives import check_kind, objective_of
from batch.training.pictures import PictureRows
from batch.training.source import Captions, Source, digest_of, is_targets, table_of
from batch.training.stream import Share, Stream
from flux_engine.encode import TextKey
from flux_engine.training.objective import Objective
from schemas.task import TrainDataset
from schemas.training import TrainJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """One dataset: its rows, how they are told, and what they teach."""

    dataset: TrainDataset
    source: Source
    captions: Captions
    objective: Objective
    share: Share
    unchecked: tuple[str, ...]  # models that its identity names and the job does not


class Curriculum:
    """All of them. `job` is resolved. JobError, TargetsError and ManifestError for what cannot be
    learned from, before anything is computed."""

    def __init__(self, job: TrainJob, parts: ModelParts, texts: TextsByKey, encode: Encode) -> None:
        self.job, self.parts = job, parts
        self.courses = tuple(opened(job, dataset, parts, texts, encode) for dataset in job.datasets)
        self.stream = Stream(
            [course.share for course in self.courses],
            seed=job.seed,
            per_step=job.gradient_accumulation_steps,
            weights=job.weights,
            epochs=job.num_epochs,
            steps=job.max_steps,
        )

    @property
    def maker(self) -> Maker:
        return Maker(
            [course.source for course in self.courses],
            [course.captions for course in self.courses],
            [course.objective for course in self.courses],
            self.job.seed,
        )

    @property
    def objectives(self) -> Sequence[Objective]:
        return [course.objective for course in self.courses]

    @property
    def names(self) -> list[str]:
        """What the datasets are called in curves: their paths, numbered where one comes twice."""
        paths = [course.dataset.path for course in self.courses]
        return [
            path if paths.count(path) == 1 else f"{path} ({n + 1})" for n, path in enumerate(paths)
        ]

    @property
    def pictures(self) -> bool:
        """Whether the autoencoder is needed for rows."""
        return any(course.source.kind == "pictures" for course in self.courses)

    @cached_property
    def captions(self) -> list[TextKey]:
        """Texts of rows that no dataset has."""
        keys = [key for course in self.courses for key in course.source.wanted(course.captions)]
        return list(dict.fromkeys(keys))

    @cached_property
    def wanted(self) -> list[TextKey]:
        """Texts that no dataset has, of captions and of the prompts of sample pictures."""
        length = self.job.sampling.t5_sequence_length
        assert length is not None
        told = [*self.job.sample_prompts]
        if told and self.job.sampling.cfg_scale != 1.0:
            told.append(self.job.sampling.negative_prompt)
        return list(dict.fromkeys([*self.captions, *((prompt, length) for prompt in told)]))

    @cached_property
    def lineage(self) -> list[dict[str, Any]]:
        """Of each dataset: where it is, whose, its files with rows and digests, and its use."""
        out = []
        counts = self.stream.counts()
        for course, micro_batches in zip(self.courses, counts, strict=True):
            told = course.source.lineage()
            used = sum(len(rows) for rows in course.share.batches.buckets.values())
            out.append(
                told
                | {
                    "digest": digest_of(told),
                    "task": self.job.task_of(course.dataset),
                    "rows_used": min(used, micro_batches * self.job.batch_size),
                    "samples": micro_batches * self.job.batch_size,
                    "unchecked": list(course.unchecked),
                }
            )
        return out

    def passed_over(self) -> list[tuple[int, int]]:
        """Rows that could not be read when they were asked for, each behind its dataset's place."""
        return [(n, row) for n, one in enumerate(self.courses) for row in one.source.passed_over()]

    def pass_over(self, rows: Iterable[tuple[int, int]]) -> None:
        """These could not be read elsewhere."""
        for n, row in rows:
            self.courses[n].source.pass_over([row])

    @property
    def digests(self) -> dict[str, str]:
        return {name: told["digest"] for name, told in zip(self.names, self.lineage, strict=True)}


def opened(
    job: TrainJob, dataset: TrainDataset, parts: ModelParts, texts: TextsByKey, encode: Encode
) -> Course:
    task = job.task_of(dataset)
    source: TargetSource | PictureSource
    unchecked: list[str] = []
    if is_targets(dataset.path):
        source = TargetSource(
            dataset.path,
            texts=texts,
            extra_inputs=job.extra_of(dataset),
            needed=needed(job, dataset),
            mask=job.masked(dataset),
        )
        unchecked = parts.refuse_strangers(source.encoded_by(), dataset.path)
        if unchecked:
            logger.warning(
                "the job names no files to compare a dataset's identity with",
                extra={"dataset": dataset.path, "models": unchecked},
            )
    else:
        source = picture_source(job, dataset, texts, encode)
    if not source.buckets():
        first = source.rejects()[0]
        raise JobError(
            f"{dataset.path}: none of its {len(source)} rows can be read, as {first.where}: "
            f"{first.reason}"
        )
    objective = objective_of(job, dataset, timestep_shift=parts.timestep_shift)
    check_kind(objective, source.kind, task, dataset.path)
    batches = BucketBatches(source, job.batch_size, job.seed, drop_small=dataset.drop_small_buckets)
    dropout = job.dropout_of(dataset)
    return Course(
        dataset=dataset,
        source=source,
        captions=Captions(job.trigger_of(dataset), dropout),
        objective=objective,
        share=Share(dataset.path, batches, job.repeat_of(dataset), dropout),
        unchecked=tuple(unchecked),
    )


def picture_source(
    job: TrainJob, dataset: TrainDataset, texts: TextsByKey, encode: Encode
) -> PictureSource:
    masked = job.masked(dataset)
    address = table_of(dataset.path)
    rows = PictureRows(
        address,
        height=job.height,
        width=job.width,
        max_pixels=job.max_pixels,
        step=job.bucket_step,
        file_keys=(job.data_file_keys[0], *(["mask"] if masked else [])),
        prompt_column=dataset.prompt_column,
        leave_out=dataset.leave_out,
        picture_roots=job.picture_roots,
        masked=masked,
        extra_inputs=job.extra_of(dataset),
        needed=needed(job, dataset),
    )
    length = job.sampling.t5_sequence_length
    assert length is not None
    return PictureSource(
        rows,
        address=address,
        prompt_column=dataset.prompt_column,
        texts=texts,
        length=length,
        encode=encode,
        extra_inputs=job.extra_of(dataset),
        mask=masked,
    )


def needed(job: TrainJob, dataset: TrainDataset) -> list[str]:
    """The further inputs of the job's that no row of a dataset may lack."""
    names = {"embedded_guidance"} if job.guidance_of(dataset) == "row" else set()
    if job.task_of(dataset).startswith("direct_distill"):
        names |= {"seed"} if dataset.student_steps else {"seed", "num_inference_steps"}
    return [name for name in job.extra_of(dataset) if name in names]
