"""Prompts into pictures."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from batch.errors import PictureError
from batch.manifest import Row
from batch.media import Pictures, to_bytes
from flux_engine.assembly import engine_of
from flux_engine.engine import Outcome
from flux_engine.errors import RequestError
from flux_engine.request import Generation, GenerationRequest
from schemas.base import SchemaError
from schemas.jobs import GenerateJob
from schemas.records import ImageRecord, Record, RejectedRecord
from schemas.sampling import Sampling

logger = logging.getLogger(__name__)

ENCODE_THREADS = 2
CHUNK = 128  # pictures that go through the engine together; bounds what is held in memory


class Engine(Protocol):
    """What this stage needs of an engine."""

    def each(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Outcome]]: ...


@dataclass(frozen=True)
class Wish:
    """One picture to make: a row, and which of its samples."""

    row: Row
    sample: int


@dataclass(frozen=True)
class Asked:
    """A wish that the engine can be asked for, with every value that counts."""

    wish: Wish
    request: GenerationRequest
    sampling: Sampling


class GenerateStage:
    """A shard's rows into records, in the order of the rows; each row fails alone."""

    def __init__(self, job: GenerateJob, roots: tuple[str, ...]) -> None:
        self.job = job
        self.pictures = Pictures(roots)
        self.engine: Engine
        self.fingerprint: dict[str, Any]

    def setup(self) -> None:
        """Load the engine; called once in a worker's life."""
        engine, self.fingerprint = engine_of(self.job.engine)
        self.engine = engine

    def __call__(self, rows: Sequence[Row], refused: dict[int, str], file: str) -> list[Record]:
        """One record for each sample of each row. `refused` says, by row number, which rows are
        not to be tried, and why."""
        wishes = [Wish(row, i) for row in rows for i in range(self.job.samples_per_row)]
        return [
            record
            for first in range(0, len(wishes), CHUNK)
            for record in self._chunk(wishes[first : first + CHUNK], refused, file)
        ]

    def _chunk(self, wishes: list[Wish], refused: dict[int, str], file: str) -> list[Record]:
        records: dict[int, Record] = {}
        asked: dict[int, Asked] = {}
        for n, wish in enumerate(wishes):
            try:
                if wish.row.number in refused:
                    name, _, reason = refused[wish.row.number].partition(": ")
                    records[n] = rejected(wish, file, name, reason)
                else:
                    asked[n] = self._ask(wish)
            except (SchemaError, PictureError) as error:
                records[n] = rejected(wish, file, type(error).__name__, str(error))
        encoding: dict[int, tuple[Generation, Future[bytes]]] = {}
        with ThreadPoolExecutor(ENCODE_THREADS) as encoders:
            for n, outcome in self._outcomes(asked):
                if isinstance(outcome, Generation):
                    encoding[n] = without_tensors(outcome), encoders.submit(self._encode, outcome)
                else:
                    records[n] = rejected(wishes[n], file, type(outcome).__name__, str(outcome))
            for n, (made, image) in encoding.items():
                records[n] = self._record(asked[n], made, image.result())
        return [records[n] for n in range(len(wishes))]

    def _encode(self, made: Generation) -> bytes:
        return to_bytes(made.pixels, self.job.image_format, self.job.image_quality)

    def _outcomes(self, asked: dict[int, Asked]) -> Iterator[tuple[int, Outcome]]:
        """All at once; if that raises, the unfinished ones one by one: the culprit falls alone.

        Batches have one fixed shape, so a row on its own comes out as it would among others.
        """
        numbers = list(asked)
        finished: set[int] = set()
        try:
            for i, outcome in self.engine.each([asked[n].request for n in numbers]):
                finished.add(numbers[i])
                yield numbers[i], outcome
        except MACHINE_FAULTS:
            raise
        except Exception as error:  # noqa: BLE001  a row's fault until it is shown to be everyone's
            alone = [n for n in numbers if n not in finished]
            logger.warning(
                "rows are tried one by one", extra={"rows": len(alone), "why": repr(error)}
            )
            yield from self._one_by_one({n: asked[n] for n in alone}, error)

    def _one_by_one(
        self, asked: dict[int, Asked], first: Exception
    ) -> Iterator[tuple[int, Outcome]]:
        faults: dict[int, RowRaised] = {}
        for n, one in asked.items():
            try:
                for _, outcome in self.engine.each([one.request]):
                    yield n, outcome
            except MACHINE_FAULTS:
                raise
            except Exception as error:  # noqa: BLE001
                faults[n] = RowRaised(f"{type(error).__name__}: {error}")
        if len(faults) == len(asked) > 1:
            raise first  # no row is to blame
        yield from faults.items()

    def _ask(self, wish: Wish) -> Asked:
        row = wish.row
        if row.parsed is None:
            raise SchemaError(row.fault)
        own = {k: v for k in Sampling.model_fields if (v := getattr(row.parsed, k)) is not None}
        sampling = Sampling.parse(self.job.sampling.model_dump() | own)
        values = sampling.model_dump()
        values["seed"] = seed_of(row.key, sampling.seed, wish.sample)
        if row.parsed.input_image is not None:
            height, width = values["height"], values["width"]
            values["input_image"] = self.pictures.read(row.parsed.input_image, height, width)
        request = GenerationRequest(prompt=row.parsed.prompt, **values)
        return Asked(wish, request, sampling)

    def _record(self, asked: Asked, made: Generation, image: bytes) -> ImageRecord:
        used = asked.sampling.model_dump() | {
            "seed": asked.request.seed,
            "sigma_shift": made.sigma_shift,
            "micro_batch": made.micro_batch,
            "tokens_dropped": made.tokens_dropped,
        }
        row = asked.wish.row
        return ImageRecord(
            key=row.key,
            sample=asked.wish.sample,
            prompt=asked.request.prompt,
            image=image,
            **used,
        )


class RowRaised(RequestError):
    """A row on which the engine raised something that it does not know by name."""


MACHINE_FAULTS = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)


def without_tensors(made: Generation) -> Generation:
    """The same facts without the picture, so that a chunk's pictures are not held twice."""
    return replace(made, pixels=torch.empty(0), latents=torch.empty(0))


def rejected(wish: Wish, file: str, error: str, reason: str) -> RejectedRecord:
    prompt = wish.row.values.get("prompt")
    return RejectedRecord(
        key=wish.row.key,
        sample=wish.sample,
        manifest_file=file,
        row=wish.row.number,
        error=error,
        reason=reason,
        prompt=prompt[:1000] if isinstance(prompt, str) else None,
    )


def seed_of(key: str, seed: int | None, sample: int) -> int:
    """A row's seed: the one given, for its first sample; else derived from what is known."""
    if seed is not None and sample == 0:
        return seed
    origin = f"{key if seed is None else seed}\n{sample}"
    return int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8], "big") >> 1
