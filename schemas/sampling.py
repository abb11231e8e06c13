"""How a picture is sampled: what a job says for all rows, and a row for itself."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from schemas.base import Schema
from schemas.lora import LoraEntries

GRID = 16  # pixels; sizes are multiples of it
LARGEST_SIDE = 8192
LONGEST_PROMPT = 20_000  # characters; T5 reads 512 tokens of it

Side = Annotated[int, Field(ge=GRID, le=LARGEST_SIDE, multiple_of=GRID)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=1, le=1000)]
T5Length = Annotated[int, Field(ge=1, le=512)]
Guidance = Annotated[FiniteFloat, Field(ge=0.0, le=1000.0)]
Shift = Annotated[FiniteFloat, Field(gt=0.0, le=1000.0)]
Strength = Annotated[FiniteFloat, Field(gt=0.0, le=1.0)]
Tile = Annotated[int, Field(ge=16, le=1024)]
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]
Schedule = Literal["flux", "diffsynth"]
RandDevice = Literal["cpu", "cuda"]


class Sampling(Schema):
    """What a row does not say. None: the model folder's own default, else the published one."""

    negative_prompt: Prompt = ""
    cfg_scale: Guidance = 1.0
    embedded_guidance: Guidance | None = None
    height: Side | None = None
    width: Side | None = None
    seed: Seed | None = None
    rand_device: RandDevice = "cpu"
    num_inference_steps: Steps | None = None
    t5_sequence_length: T5Length | None = None
    schedule: Schedule = "flux"
    sigma_shift: Shift | None = None
    denoising_strength: Strength = 1.0
    tiled: bool = False
    tile_size: Tile = 128
    tile_stride: Tile = 64
    loras: LoraEntries = ()

    @model_validator(mode="after")
    def _tiles_overlap(self) -> Self:
        if self.tile_stride > self.tile_size:
            raise ValueError(
                f"tile_stride {self.tile_stride} is larger than tile_size {self.tile_size}"
            )
        return self


class ModelDefaults(Schema):
    """`sampling.json` of a model folder: the values that this model is meant to be used with."""

    embedded_guidance: Guidance | None = None
    height: Side | None = None
    width: Side | None = None
    num_inference_steps: Steps | None = None
    t5_sequence_length: T5Length | None = None
    sigma_shift: Shift | None = None


PUBLISHED = ModelDefaults(
    embedded_guidance=3.5, height=1024, width=1024, num_inference_steps=30, t5_sequence_length=512
)


def resolve(sampling: Sampling, model: ModelDefaults) -> Sampling:
    """The job's values, with the model's and then the published ones where the job says nothing."""
    known = PUBLISHED.model_dump(exclude_none=True) | model.model_dump(exclude_none=True)
    open_fields = {k: v for k, v in known.items() if getattr(sampling, k) is None}
    return sampling.model_copy(update=open_fields)
