"""What can be submitted: one model per job."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from schemas.address import check_address
from schemas.base import Schema
from schemas.engine import EngineConfig
from schemas.manifest import COLUMNS, SOURCE_COLUMNS, PromptRow, SourceRow
from schemas.records import TARGET_COLUMNS, ImageRecord
from schemas.sampling import Sampling
from schemas.targets import CacheTarget, StoredType, Target

Count = Annotated[int, Field(ge=1)]


class BatchJob(Schema):
    """What every job has that maps over a manifest's rows."""

    manifest: str
    output: str
    rows_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 64
    samples_per_row: Annotated[int, Field(ge=1, le=10_000)] = 1
    workers: Literal["auto"] | Count | tuple[Count, Count] = "auto"
    passthrough: tuple[str, ...] = ()
    picture_roots: tuple[str, ...] = ()
    lora_roots: tuple[str, ...] = ()
    shard_retries: Annotated[int, Field(ge=0, le=100)] = 3
    max_rejected: Annotated[float, Field(ge=0.0)] | None = None
    row_timeout: Annotated[FiniteFloat, Field(gt=0.0)] | None = None
    engine: EngineConfig = EngineConfig()
    sampling: Sampling = Sampling()

    @field_validator("manifest", "output", "picture_roots", "lora_roots")
    @classmethod
    def _no_secrets(cls, addresses: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in [addresses] if isinstance(addresses, str) else addresses:
            check_address(address)
        return addresses

    @classmethod
    def own_columns(cls) -> set[str]:
        """Columns that mean something in the manifest, or stand in the output."""
        raise NotImplementedError

    @field_validator("passthrough")
    @classmethod
    def _free_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        ours = cls.own_columns()
        if taken := sorted(ours.intersection(names)):
            raise ValueError(f"{', '.join(taken)} are columns of our own")
        if len(set(names)) != len(names):
            raise ValueError("a column is named twice")
        return names

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers {list(self.workers)}: the first is the smaller one")
        return self

    def recipe(self) -> dict[str, Any]:
        """Every setting that changes a byte under `data/`, flat, by its path in the file."""
        out: dict[str, Any] = {}
        flatten(self.model_dump(mode="json"), "", out)
        if not isinstance(self.engine.model, str):
            out["engine.model"] = [entry.recipe() for entry in self.engine.model]
        unsaid = {f"engine.{name}" for name in LATER if getattr(self.engine, name) == LATER[name]}
        return {k: v for k, v in out.items() if not k.startswith(NOT_IN_RECIPE) and k not in unsaid}


class GenerateJob(BatchJob):
    """A manifest of prompts into an image dataset."""

    format: Literal["parquet", "webdataset"] = "parquet"
    image_format: Literal["png", "webp", "jpeg"] = "png"
    image_quality: Annotated[int, Field(ge=1, le=100)] = 95

    @classmethod
    def own_columns(cls) -> set[str]:
        return {*COLUMNS, *ImageRecord.model_fields}


class DistillJob(BatchJob):
    """A manifest of prompts, or of pictures with captions, into distillation targets.

    `dtype` is the type in which tensors are stored. `store_text` keeps the encoders' answers to
    each distinct caption once. `check_share` of the rows are asked about again as they are made.
    """

    target: Target
    dtype: StoredType = "float16"
    store_text: bool = True
    check_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01

    @model_validator(mode="after")
    def _one_latent(self) -> Self:
        if isinstance(self.target, CacheTarget) and self.samples_per_row != 1:
            raise ValueError(
                f"samples_per_row {self.samples_per_row}: a picture's latent is stored once; "
                "for target 'cache' it has to be 1"
            )
        return self

    @property
    def format(self) -> Literal["parquet"]:
        return "parquet"

    @classmethod
    def own_columns(cls) -> set[str]:
        return {*SOURCE_COLUMNS, *ImageRecord.model_fields, *TARGET_COLUMNS}


Job = GenerateJob | DistillJob


def row_of(job: Job) -> type[PromptRow]:
    """What a row of the job's manifest is."""
    return SourceRow if isinstance(job, DistillJob) else PromptRow


def lineage_of(job: Job) -> frozenset[str]:
    """Columns that the job's manifest may have and that mean nothing for it."""
    return frozenset(ImageRecord.model_fields if isinstance(job, DistillJob) else ())


NOT_IN_RECIPE = (
    "manifest",
    "output",
    "workers",
    "picture_roots",
    "lora_roots",
    "shard_retries",
    "max_rejected",
    "row_timeout",
    "engine.device",
    "engine.vram_limit",
    "engine.lora_gib",
)


# came after the first outputs, whose recipes do not name them
LATER: dict[str, Any] = {"approximate": (), "attention": "default", "compile": False}


def flatten(value: Any, path: str, out: dict[str, Any]) -> None:
    """Nested mappings into `a.b: value`; lists stay whole."""
    if not isinstance(value, dict):
        out[path] = value
        return
    for name, inner in value.items():
        flatten(inner, f"{path}.{name}" if path else name, out)
