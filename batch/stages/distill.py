"""Rows into what a student needs of its teacher."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, BinaryIO, cast

import pyarrow as pa
import torch
from torch import Tensor

from batch.errors import LoraError, OutputError, PictureError
from batch.output import RUN, Output, to_json
from batch.publish import Beside, Written
from batch.shards import Shard
from batch.sink import Carried
from batch.stages.base import Listener
from batch.stages.generate import CHUNK, Asked, GenerateStage, Listening, done
from batch.target_plan import captions, dynamic_size, max_pixels_of
from batch.targets.checks import FAR_OFF, KINDS, Checks, Row
from batch.targets.identity import IdentityError, refuse_other
from batch.targets.layout import digest_of, write_targets
from batch.targets.material import MASK_TYPE, found
from batch.targets.noise import derived, hash_of, noise_of
from batch.targets.questions import Levelled, Question, levelled, queries_of, tensors_of
from batch.targets.teacher import identity_of
from batch.targets.tensors import stored
from batch.targets.text import SUFFIX, TEXT, Told, caption_id, write_texts
from batch.web import shown
from batch.wishes import Wish, rejected
from flux_engine.engine import FluxEngine
from flux_engine.errors import RequestError
from flux_engine.pictures import crop_box
from flux_engine.request import Generation, GenerationRequest
from flux_engine.rows import Coded, least, shortages
from flux_engine.sampling.schedule import sigmas
from flux_engine.teacher import Answer, Query, Taps, Teacher
from schemas.base import SchemaError
from schemas.jobs import DistillJob
from schemas.lora import LoraRecord
from schemas.manifest import SourceRow
from schemas.records import Record, TargetRecord
from schemas.targets import (
    FROM_PROMPTS,
    NOISE,
    SOLVER,
    CacheTarget,
    FeatureTarget,
    PathTarget,
    VelocityTarget,
)

logger = logging.getLogger(__name__)

OWN = ("seed", "num_inference_steps", "embedded_guidance", "cfg_scale")
Values = dict[str, Any]
Found = tuple[Mapping[str, Tensor], Values]  # a row's tensors, and what is told of them


class DistillStage(GenerateStage):
    """Wishes into targets; each row fails alone, and a share of them is asked about again."""

    job: DistillJob

    def setup(self) -> None:
        super().setup()
        self.model = cast("FluxEngine", self.engine)
        target, taps = self.job.target, None
        if isinstance(target, FeatureTarget):
            taps = Taps(names=target.taps, width=target.width, seed=target.seed)
        self.teacher = Teacher(self.model, taps)
        self.checks = Checks(self.teacher, target.kind)
        self.identity = identity_of(self.job, self.model, self.fingerprint)
        output = Output(self.job.output, self.job.format)
        name = f"{RUN}/identity.json"
        if not output.storage.create(name, to_json(self.identity)):
            there = json.loads(output.storage.read(name))
            try:
                refuse_other(self.identity, there, f"{self.job.output}: made by another teacher")
            except IdentityError as error:
                raise OutputError(str(error)) from None

    def _ask(self, wish: Wish, listener: Listener) -> Asked:
        row, target = wish.row.parsed, self.job.target
        if isinstance(row, SourceRow) and row.input_image is not None:
            raise SchemaError(
                "input_image: a target begins with noise alone; pictures with captions are in the "
                "column image"
            )
        asked = super()._ask(self._sized(wish), listener)
        if asked.request.rand_device != "cpu":
            raise SchemaError("rand_device: targets are made of noise from the CPU alone")
        if target.kind in FROM_PROMPTS:
            if asked.request.denoising_strength != 1.0:
                raise SchemaError("denoising_strength: a way begins with noise alone")
            path = isinstance(target, PathTarget)
            segments = target.segments if isinstance(target, PathTarget) else None
            request = replace(asked.request, decode=False, traced=path, segments=segments)
            return replace(asked, request=request)
        assert isinstance(row, SourceRow)
        if row.image is None:
            raise PictureError("the row has no image")
        listener.at("read", [wish])
        told = found(self.pictures, wish.row.values, row.image, asked.request, target)
        origin = {
            "input_image_path": shown(row.image.path) if row.image.path else None,
            "input_image_sha256": told.picture.sha256,
            "image_width": told.picture.size[0],
            "image_height": told.picture.size[1],
            "crop_box": crop_box(told.picture.size, asked.request.height, asked.request.width),
        }
        request = replace(asked.request, input_image=told.picture.pixels, decode=False)
        return replace(asked, request=request, origin=origin, beside=told.beside)

    def _sized(self, wish: Wish) -> Wish:
        """The wish with the size that follows from its picture, where the target goes by that."""
        if max_pixels_of(self.job) is None or wish.row.parsed is None:
            return wish
        size = dynamic_size(wish.row.values, self.job)
        if size is None:
            raise SchemaError(
                "has neither image_width and image_height, from which a size follows, nor both "
                "height and width"
            )
        parsed = wish.row.parsed.model_copy(update=size)
        return replace(wish, row=replace(wish.row, parsed=parsed))

    def _chunk(
        self, asked: list[Asked], file: str, listener: Listener
    ) -> Iterator[tuple[Wish, Future[Record]]]:
        made: list[tuple[Asked, TargetRecord]] = []
        for one, outcome in self._made(asked, listener):
            if isinstance(outcome, RequestError):
                name = type(outcome).__name__
                yield one.wish, done(rejected(one.wish, file, name, str(outcome)))
            else:
                made.append((one, self._target(one, file, *outcome)))
        if listener.leaving():  # what would be asked about again is left undone
            made = [(a, r) for a, r in made if not self._sampled(r)]
        errors = self._checked(made, listener)
        for one, record in made:
            update = {"check_rel": errors.get(record.sample_id)}
            yield one.wish, done(record.model_copy(update=update))

    def _checked(
        self, made: Sequence[tuple[Asked, TargetRecord]], listener: Listener
    ) -> dict[str, float]:
        """Relative errors of a share of these rows, asked about again."""
        some = [(a, r) for a, r in made if self._sampled(r)]
        if not some:
            return {}
        listener.at("check", [asked.wish for asked, _ in some])
        errors = self._errors([Row(record, a.request.loras) for a, record in some])
        for name, error in errors.items():
            if not error <= FAR_OFF:
                logger.warning("target far off", extra={"sample": name, "check_rel": error})
        return {name: float(torch.tensor(error)) for name, error in errors.items()}

    def _errors(self, rows: Sequence[Row]) -> dict[str, float]:
        """Of each row; one that the teacher cannot be asked about is as far off as can be."""
        try:
            return self.checks.errors(rows)
        except RequestError:
            if len(rows) == 1:
                return {rows[0].record.sample_id: math.inf}
            return {name: error for row in rows for name, error in self._errors([row]).items()}

    def _sampled(self, record: TargetRecord) -> bool:
        return self.job.target.kind in KINDS and drawn(record.sample_id, self.job.check_share)

    def _made(
        self, asked: list[Asked], listener: Listener
    ) -> Iterator[tuple[Asked, Found | RequestError]]:
        if self.job.target.kind in FROM_PROMPTS:
            for one, outcome in self._outcomes(asked, listener):
                yield one, self._way(one, outcome) if isinstance(outcome, Generation) else outcome
            return
        yield from self._alone_if_need_be(asked, lambda some: self._of_pictures(some, listener))

    def _of_pictures(
        self, asked: list[Asked], listener: Listener
    ) -> Iterator[tuple[Asked, Found | RequestError]]:
        latents = self._latents(asked, listener)
        if isinstance(self.job.target, CacheTarget):
            name = "moments" if self.job.target.moments else "latent"
            for i, latent in latents.items():
                told = own(asked[i]) | {"halved": shortages(encode=latent.halved)}
                yield asked[i], ({name: latent.values} | dict(asked[i].beside), told)
            return
        yield from self._answers(asked, latents, listener)

    def _way(self, asked: Asked, made: Generation) -> Found:
        """Of a prompt: where the teacher arrived, or the way that it took."""
        request = asked.request
        told: Values = {
            "seed": request.seed,
            "noise_algo": NOISE,
            "noise_hash": hash_of(noise_of(request.seed, made.latents.shape)),
            "solver": SOLVER,
            "num_inference_steps": request.num_inference_steps,
            "schedule": request.schedule,
            "sigma_shift": made.sigma_shift,
            "embedded_guidance": request.embedded_guidance,
            "cfg_scale": request.cfg_scale,
            "micro_batch": made.micro_batch,
            "halved": made.halved,
            "loras": worn(asked, made.loras),
        }
        if made.trace is not None:
            return {"u": made.trace.velocities}, told | {"sigmas": made.trace.sigmas}
        levels = sigmas(request.schedule, request.num_inference_steps, made.sigma_shift, 1.0)
        return {"latent": made.latents}, told | {"sigmas": tuple(levels.tolist())}

    def _latents(self, asked: list[Asked], listener: Listener) -> dict[int, Coded]:
        moments = isinstance(self.job.target, CacheTarget) and self.job.target.moments
        pictures = [cast("Tensor", one.request.input_image) for one in asked]
        watch = Listening(asked, listener)
        return dict(self.model.encode(pictures, moments=moments, watch=watch))

    def _answers(
        self, asked: list[Asked], latents: dict[int, Coded], listener: Listener
    ) -> Iterator[tuple[Asked, Found | RequestError]]:
        """Of pictures: what the teacher says at some noise levels."""
        target = self.job.target
        assert isinstance(target, VelocityTarget | FeatureTarget)
        rows = {
            i: levelled(
                target,
                f"{sample_id(asked[i].wish)} {asked[i].request.seed}",
                latent.values,
                asked[i].request.embedded_guidance,
                self.job.dtype,
            )
            for i, latent in latents.items()
        }
        questions: list[Question] = []
        queries: list[Query] = []
        for i, row in rows.items():
            for question, query in queries_of(target, i, asked[i].request, row):
                questions.append(question)
                queries.append(query)
        answers: dict[int, dict[tuple[int, int], Answer]] = {i: {} for i in rows}
        wanted = {i: sum(q.row == i for q in questions) for i in rows}
        failed: set[int] = set()
        watch = Listening([asked[q.row] for q in questions], listener)
        for n, answer in self.teacher.each(queries, watch):
            question = questions[n]
            i = question.row
            if isinstance(answer, RequestError):
                if i not in failed:
                    failed.add(i)
                    yield asked[i], answer
                continue
            answers[i][question.level, question.guidance] = answer
            if len(answers[i]) == wanted[i]:
                given = answers.pop(i)
                told = self._asked_for(asked[i], rows[i]) | {
                    "micro_batch": min(one.micro_batch for one in given.values()),
                    "halved": shortages(
                        text=least(one.text_halved for one in given.values()),
                        encode=latents[i].halved,
                    ),
                }
                yield asked[i], (tensors_of(target, rows[i], given), told)

    def _asked_for(self, asked: Asked, row: Levelled) -> Values:
        shelf = self.model.loras.shelf
        return {
            "noise_algo": NOISE,
            "t": row.t,
            "t_noise_seed": row.seeds,
            "t_noise_hash": tuple(row.hashes),
            "guidances": row.guidances,
            "embedded_guidance": row.guidances[0],
            "loras": worn(asked, [shelf.take(use).digest for use in asked.request.loras]),
        }

    def _target(
        self, asked: Asked, file: str, tensors: Mapping[str, Tensor], told: Values
    ) -> TargetRecord:
        """A row's record, its tensors as bytes."""
        wish, request = asked.wish, asked.request
        negative = request.guided or getattr(self.job.target, "unconditional", False)
        kept = {
            name: stored(tensor, MASK_TYPE if name == "mask" else self.job.dtype)
            for name, tensor in tensors.items()
        }
        values: Values = {
            "sample_id": sample_id(wish),
            "key": wish.row.key,
            "sample": wish.sample,
            "source_file": file,
            "source_row": wish.row.number,
            "caption": request.prompt,
            "caption_id": self._caption_id(request, request.prompt),
            "negative_caption": request.negative_prompt if negative else None,
            "negative_id": self._caption_id(request, request.negative_prompt) if negative else None,
            "height": request.height,
            "width": request.width,
            "t5_sequence_length": request.t5_sequence_length,
            **asked.origin,
            **told,
        }
        record = TargetRecord(**values, digest="", tensors=kept)
        data = {name: tensor.bytes for name, tensor in kept.items()}
        return record.model_copy(update={"digest": digest_of(record.model_dump(), data)})

    def _caption_id(self, request: GenerationRequest, caption: str) -> str:
        changed = self.model.loras.outfit(request).text_key
        return caption_id(caption, request.t5_sequence_length, self.identity["text"], changed)

    def write(self, file: BinaryIO, records: Written, passthrough: list[pa.Field]) -> int:
        made = cast("Iterator[tuple[TargetRecord, Carried]]", records)
        return write_targets(file, made, passthrough, self.identity)

    def beside(self, shard: Shard, wishes: Sequence[Wish]) -> Beside:
        """The texts of captions that this shard's rows are the first to have."""
        rows = {wish.row.number: wish for wish in wishes}
        asked = (self._about(rows[number], which) for number, which in shard.texts)
        wanted = [request for request in asked if request is not None]
        if not wanted:
            return ()
        file = f"{TEXT}/{shard.name}{SUFFIX}"
        return ((file, lambda opened: write_texts(opened, self._texts(wanted), self.identity)),)

    def _texts(self, wanted: Sequence[GenerationRequest]) -> Iterator[Told]:
        """One for each distinct caption; no more are held than a chunk of them."""
        told: set[str] = set()
        for first in range(0, len(wanted), CHUNK):
            some = dict(enumerate(wanted[first : first + CHUNK]))
            outfits = {i: self.model.loras.outfit(request) for i, request in some.items()}
            bucket = next(iter(self.model.buckets(some, outfits)))
            texts = self.model.encode_texts(some, outfits, bucket)
            for i, request in some.items():
                name = self._caption_id(request, request.prompt)
                if name not in told:
                    told.add(name)
                    text = texts[outfits[i].text_key][request.prompt, request.t5_sequence_length]
                    tensors = text.states_TW, text.pooled_P
                    yield Told(name, request.prompt, *tensors, text.halved)

    def _about(self, wish: Wish, which: int) -> GenerationRequest | None:
        """A request for nothing but a row's caption (0) or negative one (1); None if nobody can be
        asked for it, so that all rows that have it are rejected.

        The row itself may be rejected for another reason, while later rows count on its text: only
        what the plan looked at decides.
        """
        caption, length, _ = dict(captions(wish.row.values, self.job))[which]
        told = {"prompt": caption, "t5_sequence_length": length}
        try:
            row = SourceRow.parse(told | {"loras": wish.row.values.get("loras")})
            alone = replace(wish, row=replace(wish.row, parsed=row))
            request = super()._ask(alone, Nobody()).request
            self.model.loras.outfit(request)
        except (SchemaError, RequestError, LoraError):
            return None
        return replace(request, cfg_scale=1.0, decode=False)


class Nobody:
    """Listens to nothing."""

    def at(self, stage: str, wishes: Sequence[Wish]) -> None:
        """Not told on."""

    def leaving(self) -> bool:
        return False


def sample_id(wish: Wish) -> str:
    """Hex that names a row of targets: the source row's key, and which of its samples."""
    told = json.dumps([wish.row.key, wish.sample])
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def drawn(name: str, share: float) -> bool:
    """Whether a row belongs to a share of all, by its name alone."""
    return derived(name, -2) < share * 2**63


def own(asked: Asked) -> Values:
    """What a picture's row itself says of how a student is to make it; None where it is silent."""
    return {name: getattr(asked.wish.row.parsed, name) for name in OWN}


def worn(asked: Asked, digests: Sequence[str]) -> tuple[LoraRecord, ...]:
    return tuple(
        LoraRecord(name=entry.name, scale=entry.scale, sha256=digest)
        for entry, digest in zip(asked.sampling.loras, digests, strict=True)
    )
