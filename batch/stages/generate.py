"""Prompts into pictures."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from batch.encoders import Encoders
from batch.errors import LoraError, MachineFault, PictureError
from batch.kept import KeptShapes
from batch.lora_files import LoraFiles
from batch.media import Pictures, to_bytes
from batch.output import Output
from batch.publish import Beside, Written
from batch.shards import Shard
from batch.sink import Carried, write_parquet, write_tar
from batch.stages.base import Listener
from batch.web import shown
from batch.wishes import Wish, rejected
from flux_engine.errors import RequestError, SettingError
from flux_engine.request import Generation, GenerationRequest, Outcome, Watch
from schemas.base import SchemaError
from schemas.jobs import DistillJob, GenerateJob
from schemas.lora import LoraRecord
from schemas.manifest import PromptRow
from schemas.records import ImageRecord, Record
from schemas.sampling import Sampling

logger = logging.getLogger(__name__)

M = TypeVar("M")  # what is made of a row

CHUNK = 128  # pictures that go through the engine together
CHUNK_BYTES = 256 * 2**20  # of pictures that they start from; with CHUNK, bounds what is held


class Engine(Protocol):
    """What this stage needs of an engine."""

    def each(
        self, requests: Sequence[GenerationRequest], *, watch: Watch
    ) -> Iterator[tuple[int, Outcome]]: ...


@dataclass(frozen=True)
class Asked:
    """A wish that the engine can be asked for, with every value that counts."""

    wish: Wish
    request: GenerationRequest
    sampling: Sampling
    origin: Mapping[str, Any] = field(default_factory=dict)  # what is told of its picture
    beside: Mapping[str, Tensor] = field(default_factory=dict)  # what a target keeps of it as it is

    @property
    def held(self) -> int:
        """Bytes of the picture it starts from."""
        picture = self.request.input_image
        return 0 if picture is None else picture.numel() * picture.element_size()


class Listening(Watch):
    """Passes on what the engine says of its requests as what it says of their wishes."""

    def __init__(self, asked: Sequence[Asked], listener: Listener) -> None:
        self.asked, self.listener = asked, listener

    def at(self, stage: str, rows: Sequence[int]) -> None:
        self.listener.at(stage, [self.asked[i].wish for i in rows])

    def leaving(self) -> bool:
        return self.listener.leaving()


class GenerateStage:
    """Wishes into records, as they are finished; each row fails alone."""

    def __init__(self, job: GenerateJob | DistillJob, roots: tuple[str, ...]) -> None:
        """`roots` are the manifest's own folder, and the job's `picture_roots`."""
        self.job = job
        self.pictures = Pictures(roots)
        self.loras = LoraFiles((*roots[:1], *job.lora_roots))
        self.encoders = Encoders()
        self.served = False  # whether the engine has ever answered
        self.engine: Engine
        self.fingerprint: dict[str, Any]
        self.deviations: list[float] = []

    def setup(self) -> None:
        """Load the engine; called once in a worker's life."""
        # here, because transformers come with it: who brings another engine does without
        from flux_engine.assembly import engine_of
        from flux_engine.weights.lora.report import summary

        engine, self.fingerprint = engine_of(self.job.engine)
        uses = tuple(self.loras.of_job(entry) for entry in self.job.sampling.loras)
        for use in uses:
            told = summary(engine.loras.describe(use, engine.residency))
            logger.info("LoRA in use", extra={"lora": use.name, "scale": use.scale, **told})
            self.fingerprint["weights"][f"LoRA {use.name}"] = engine.loras.shelf.take(use).digest
        engine.planning.keep = KeptShapes(Output(self.job.output, self.job.format).storage)
        self.deviations = engine.deviation.measured
        values = self.job.sampling.model_dump() | {"seed": 0, "loras": ()}
        bare = GenerationRequest(prompt="", **values)
        engine.room_for(bare)
        if uses:
            engine.room_for(bare, engine.loras.outfit(replace(bare, loras=uses)))
        self.engine = engine

    def __call__(
        self, wishes: Sequence[Wish], file: str, listener: Listener
    ) -> Iterator[tuple[Wish, Future[Record]]]:
        """Each wish with the record that it will have; some are left out if the listener leaves.

        MachineFault if memory or the card gives out.
        """
        try:
            yield from self._records(wishes, file, listener)
        except MACHINE_FAULTS as error:
            raise MachineFault(f"{type(error).__name__}: {error}") from None

    def _records(
        self, wishes: Sequence[Wish], file: str, listener: Listener
    ) -> Iterator[tuple[Wish, Future[Record]]]:
        asked: list[Asked] = []
        held = 0
        listener.at("read", wishes)
        for wish in wishes:
            if listener.leaving():
                return
            try:
                asked.append(self._ask(wish, listener))
                held += asked[-1].held
            except (SchemaError, PictureError, LoraError) as error:
                yield wish, done(rejected(wish, file, type(error).__name__, str(error)))
            if len(asked) >= CHUNK or held > CHUNK_BYTES:
                yield from self._chunk(asked, file, listener)
                asked, held = [], 0
        if asked:
            yield from self._chunk(asked, file, listener)

    def _chunk(
        self, asked: list[Asked], file: str, listener: Listener
    ) -> Iterator[tuple[Wish, Future[Record]]]:
        for one, outcome in self._outcomes(asked, listener):
            if isinstance(outcome, Generation):
                made = replace(outcome, pixels=None, latents=outcome.latents.new_empty(0))
                work = partial(self._record, one, made)
                yield one.wish, self.encoders.submit(outcome.picture, work)
            else:
                name = type(outcome).__name__
                yield one.wish, done(rejected(one.wish, file, name, str(outcome)))

    def _outcomes(self, asked: list[Asked], listener: Listener) -> Iterator[tuple[Asked, Outcome]]:
        def ask(some: list[Asked]) -> Iterator[tuple[Asked, Outcome]]:
            requests = [one.request for one in some]
            for i, outcome in self.engine.each(requests, watch=Listening(some, listener)):
                yield some[i], outcome

        return self._alone_if_need_be(asked, ask)

    def _alone_if_need_be(
        self, asked: list[Asked], ask: Callable[[list[Asked]], Iterator[tuple[Asked, M]]]
    ) -> Iterator[tuple[Asked, M | RequestError]]:
        """All at once; if that raises, the unfinished ones one by one: the culprits fall alone.

        Batches have one fixed shape, so a row on its own comes out as it would among others.
        """
        finished: set[int] = set()
        try:
            for one, outcome in ask(asked):
                finished.add(id(one))
                self.served = True
                yield one, outcome
        except (*MACHINE_FAULTS, SettingError):
            raise
        except Exception as error:  # noqa: BLE001  a row's fault until it is shown to be everyone's
            alone = [one for one in asked if id(one) not in finished]
            logger.warning(
                "rows are tried one by one", extra={"rows": len(alone), "why": repr(error)}
            )
            yield from self._one_by_one(alone, error, ask)

    def _one_by_one(
        self,
        asked: list[Asked],
        first: Exception,
        ask: Callable[[list[Asked]], Iterator[tuple[Asked, M]]],
    ) -> Iterator[tuple[Asked, M | RequestError]]:
        faults: list[tuple[Asked, RowRaised]] = []
        for one in asked:
            try:
                for _, outcome in ask([one]):
                    self.served = True
                    yield one, outcome
            except MACHINE_FAULTS:
                raise
            except Exception as error:  # noqa: BLE001
                faults.append((one, RowRaised(f"{type(error).__name__}: {error}")))
        if len(faults) == len(asked) > 1 and not self.served:
            raise first  # no row is to blame: the engine has never served one
        yield from faults

    def _ask(self, wish: Wish, listener: Listener) -> Asked:
        row = wish.row
        if not isinstance(row.parsed, PromptRow):
            raise SchemaError(row.fault)
        own = {k: v for k in Sampling.model_fields if (v := getattr(row.parsed, k)) is not None}
        sampling = Sampling.parse(self.job.sampling.model_dump() | own)
        values = sampling.model_dump()
        values["seed"] = seed_of(row.key, sampling.seed, wish.sample)
        origin: dict[str, Any] = {}
        if (ref := row.parsed.input_image) is not None:
            listener.at("read", [wish])  # a row by itself: it may take long, or kill the decoder
            picture = self.pictures.read(ref, values["height"], values["width"])
            values["input_image"] = picture.pixels
            origin = {
                "input_image_path": shown(ref.path) if ref.path else None,
                "input_image_sha256": picture.sha256,
            }
        where = self.loras.of_job if row.parsed.loras is None else self.loras.of_row
        values["loras"] = tuple(where(entry) for entry in sampling.loras)
        request = GenerationRequest(prompt=row.parsed.prompt, **values)
        return Asked(wish, request, sampling, origin)

    def _record(self, asked: Asked, made: Generation, picture: Image.Image) -> Record:
        used = asked.sampling.model_dump() | {
            "seed": asked.request.seed,
            "sigma_shift": made.sigma_shift,
            "micro_batch": made.micro_batch,
            "tokens_dropped": made.tokens_dropped,
            "loras": tuple(
                LoraRecord(name=entry.name, scale=entry.scale, sha256=digest)
                for entry, digest in zip(asked.sampling.loras, made.loras, strict=True)
            ),
            "approximate": made.approximate,
            "halved": made.halved,
        }
        assert isinstance(self.job, GenerateJob)
        return ImageRecord(
            key=asked.wish.row.key,
            sample=asked.wish.sample,
            prompt=asked.request.prompt,
            image=to_bytes(picture, self.job.image_format, self.job.image_quality),
            **used,
            **asked.origin,
        )

    def write(self, file: BinaryIO, records: Written, passthrough: list[pa.Field]) -> int:
        """Put a shard's records, in this order, into a file; how many there were."""
        assert isinstance(self.job, GenerateJob)
        made = cast("Iterable[tuple[ImageRecord, Carried]]", records)
        if self.job.format == "webdataset":
            return write_tar(file, made, self.job.image_format)
        return write_parquet(file, made, passthrough, self.job.image_format)

    def beside(self, shard: Shard, wishes: Sequence[Wish]) -> Beside:  # noqa: ARG002
        """Pictures need no other files."""
        return ()


class RowRaised(RequestError):
    """A row on which the engine raised something that it does not know by name."""


MACHINE_FAULTS = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)


def done(record: Record) -> Future[Record]:
    """A record that need not be waited for."""
    future: Future[Record] = Future()
    future.set_result(record)
    return future


def seed_of(key: str, seed: int | None, sample: int) -> int:
    """A row's seed: the one given, for its first sample; else derived from what is known."""
    if seed is not None and sample == 0:
        return seed
    origin = f"{key if seed is None else seed}\n{sample}"
    return int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8], "big") >> 1
