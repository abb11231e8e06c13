"""Forms of other trainers into which targets can be written."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from schemas.base import Schema
from schemas.engine import BatchSize, ModelEntry

Rows = Annotated[int, Field(ge=1, le=1_000_000)]


class FastGenExport(Schema):
    """WebDataset tars for FastGen's pair and path loaders. Of a path, `states` of its states are
    written, as evenly spread as they are (None: all but the last, which is the latent)."""

    format: Literal["fastgen"] = "fastgen"
    rows_per_tar: Rows = 1000
    states: Annotated[int, Field(ge=1, le=1000)] | None = 4


class Dmd2Export(Schema):
    """LMDB for DMD2's ODE dataset, or, with `reader: causvid`, for CausVid's."""

    format: Literal["dmd2"] = "dmd2"
    reader: Literal["dmd2", "causvid"] = "dmd2"


class FastVideoExport(Schema):
    """Parquet for FastVideo's map-style dataset."""

    format: Literal["fastvideo"] = "fastvideo"
    rows_per_file: Rows = 256


class DiffSynthExport(Schema):
    """Pictures and a table for DiffSynth-Studio's direct distillation. `num_inference_steps` and
    `cfg_scale` are what the student is to be unrolled with. `model` has the autoencoder."""

    format: Literal["diffsynth"] = "diffsynth"
    model: str | tuple[ModelEntry, ...] = "flux-shapes"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    decode_batch: BatchSize = 4
    table: Literal["csv", "jsonl"] = "csv"
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 4
    cfg_scale: Annotated[FiniteFloat, Field(ge=0.0, le=1000.0)] = 1.0


Export = Annotated[
    FastGenExport | Dmd2Export | FastVideoExport | DiffSynthExport, Field(discriminator="format")
]


class ExportJob(Schema):
    """A dataset of targets, and the form it is written in."""

    export: Export
