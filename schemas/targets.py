"""What a distillation target holds: one model for each kind, and the words of a stored dataset."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from schemas.base import Schema
from schemas.sampling import GRID

StoredType = Literal["float16", "bfloat16", "float32"]
Level = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]
Guidance = Annotated[FiniteFloat, Field(ge=0.0, le=1000.0)]

VERSION = 2  # of the layout; readers refuse another one
METADATA = "fluxmill.targets"  # the entry of a file's footer that holds the identity
NOISE = "torch-cpu-float32"  # torch.randn((Z, H/8, W/8)) of a CPU generator with the row's seed
SOLVER = "euler"


class OfPictures(Schema):
    """A target of pictures. With `max_pixels` a row's size, unless it says one, is its picture's,
    scaled down to so many pixels and cut to multiples of `bucket_step`."""

    max_pixels: Annotated[int, Field(ge=GRID * GRID)] | None = None
    bucket_step: Annotated[int, Field(ge=GRID, le=1024, multiple_of=GRID)] = GRID

    @model_validator(mode="after")
    def _step_of_something(self) -> Self:
        if self.max_pixels is None and "bucket_step" in self.model_fields_set:
            raise ValueError("bucket_step means nothing without max_pixels")
        if self.max_pixels is not None and self.max_pixels < self.bucket_step**2:
            raise ValueError(
                f"max_pixels {self.max_pixels}: is less than the {self.bucket_step**2} of one step "
                "by one"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came after the first outputs, whose recipes and identities do not name it, is told
        only where it is set."""
        told: dict[str, Any] = write(self)
        if self.max_pixels is None:
            del told["max_pixels"], told["bucket_step"]
        if not told.get("mask", True):
            del told["mask"]
        return told


class CacheTarget(OfPictures):
    """Pictures as latents: the posterior's mean, or its mean and log-variance (`moments`). With
    `mask`, what the row's mask leaves white, by latent cell."""

    kind: Literal["cache"] = "cache"
    moments: bool = False
    mask: bool = False


class PairTarget(Schema):
    """Noise, by its key, and the latent that the teacher makes of it."""

    kind: Literal["pair"] = "pair"


class PathTarget(Schema):
    """The velocities of a path's segments; `segments` None: each step is one."""

    kind: Literal["path"] = "path"
    segments: Annotated[int, Field(ge=1, le=1000)] | None = None


class Levels(OfPictures):
    """Noise levels at which a teacher is asked about a picture: those of `timesteps`, or `queries`
    of them drawn for each row (`uniform`, or `logit_normal`: the sigmoid of a normal draw)."""

    timesteps: tuple[Level, ...] = ()
    queries: Annotated[int, Field(ge=1, le=1000)] = 1
    distribution: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: FiniteFloat = 0.0
    spread: Annotated[FiniteFloat, Field(gt=0.0)] = 1.0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.timesteps and "queries" in self.model_fields_set:
            raise ValueError("give timesteps, or how many are drawn (queries), not both")
        return self

    @property
    def count(self) -> int:
        return len(self.timesteps) or self.queries


class VelocityTarget(Levels):
    """Answers at noise levels of a picture's latents; for each value of `guidance` (none: the
    row's own), and, if asked, `unconditional`: for the row's negative prompt."""

    kind: Literal["velocity"] = "velocity"
    guidance: tuple[Guidance, ...] = ()
    unconditional: bool = False


class FeatureTarget(Levels):
    """Outputs of blocks at noise levels of a picture's latents, projected to `width` by a matrix
    that `seed` determines."""

    kind: Literal["feature"] = "feature"
    taps: Annotated[tuple[str, ...], Field(min_length=1)]
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


Target = Annotated[
    CacheTarget | PairTarget | PathTarget | VelocityTarget | FeatureTarget,
    Field(discriminator="kind"),
]
FROM_PROMPTS = ("pair", "path")  # kinds whose rows are prompts; the others' are pictures
