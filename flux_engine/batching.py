"""Batches of one fixed shape, so that a row's bits do not depend on its neighbours."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flux_engine.request import GenerationRequest, Schedule

T = TypeVar("T")

TEXT_BATCH = 8
TOKENS_A_MICRO_BATCH = 16384  # four pictures of 1024², whose 4096 tokens fill a large card
LARGEST_MICRO_BATCH = 16
PIXELS_A_DECODE_BATCH = 2**20
LARGEST_DECODE_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many rows each stage takes at once; None: a rule of the picture's size alone, for texts
    a number.

    These belong to the recipe: another batch shape is another kernel, and so other last bits.
    """

    text: int | None = None
    micro: int | None = None
    decode: int | None = None

    @property
    def text_batch(self) -> int:
        return self.text or TEXT_BATCH

    def micro_batch(self, tokens: int) -> int:
        return self.micro or min(LARGEST_MICRO_BATCH, max(1, TOKENS_A_MICRO_BATCH // tokens))

    def decode_batch(self, height: int, width: int) -> int:
        rule = max(1, PIXELS_A_DECODE_BATCH // (height * width))
        return self.decode or min(LARGEST_DECODE_BATCH, rule)


@dataclass(frozen=True, order=True)
class Worn:
    """What LoRAs beside the weights take: so many numbers are one outfit's factors, so many a row's
    copies of one layer's. Both follow from the outfits' kind; how many `outfits` there are, not.
    """

    factors: int = 0
    gathered: int = 0
    outfits: int = 1


NOTHING_WORN = Worn()


@dataclass(frozen=True, order=True)
class Bucket:
    """What rows must have in common to share a micro-batch.

    `loras` is their outfits' kind, `worn` what they take. `segments` of a path that is kept: 0 for
    each step, −1 for no path.
    """

    height: int
    width: int
    steps: int
    t5_sequence_length: int
    schedule: Schedule
    sigma_shift: float
    strength: float
    guided: bool
    loras: str = ""
    segments: int = -1
    worn: Worn = NOTHING_WORN

    @classmethod
    def of(cls, request: GenerationRequest, sigma_shift: float, loras: str = "") -> "Bucket":
        return cls(
            height=request.height,
            width=request.width,
            steps=request.num_inference_steps,
            t5_sequence_length=request.t5_sequence_length,
            schedule=request.schedule,
            sigma_shift=sigma_shift,
            strength=1.0 if request.input_image is None else request.denoising_strength,
            guided=request.guided,
            loras=loras,
            segments=(request.segments or 0) if request.traced else -1,
        )


def fixed_batches(items: Sequence[T], size: int) -> Iterator[tuple[list[T], list[T]]]:
    """Pairs (what is real, what is computed): the last batch is filled with its last item."""
    for first in range(0, len(items), size):
        yield _filled(items[first : first + size], size)


def mixed_batches(
    items: Sequence[T], size: int, kind: Callable[[T], Hashable], most: int
) -> Iterator[tuple[list[T], list[T]]]:
    """The same, of items of up to `most` kinds each."""
    real: list[T] = []
    for item in items:
        kinds = {kind(one) for one in (*real, item)}
        if len(real) == size or len(kinds) > most:
            yield _filled(real, size)
            real = []
        real.append(item)
    if real:
        yield _filled(real, size)


def _filled(real: Sequence[T], size: int) -> tuple[list[T], list[T]]:
    return list(real), [*real, *[real[-1]] * (size - len(real))]
