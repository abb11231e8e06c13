"""What can be submitted: one model per job."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.address import check_address
from schemas.engine import EngineConfig
from schemas.ingest import IngestJob, SourceLine
from schemas.manifest import COLUMNS, SOURCE_COLUMNS, KeyedRow, PromptRow, SourceRow
from schemas.mapped import MappedJob
from schemas.records import TARGET_COLUMNS, TRAINING_SIZES, ImageRecord
from schemas.sampling import Sampling
from schemas.targets import CacheTarget, StoredType, Target


class BatchJob(MappedJob):
    """What every job has that asks an engine about a manifest's rows."""

    manifest: str
    samples_per_row: Annotated[int, Field(ge=1, le=10_000)] = 1
    passthrough: tuple[str, ...] = ()
    lora_roots: tuple[str, ...] = ()
    engine: EngineConfig = EngineConfig()
    sampling: Sampling = Sampling()

    @field_validator("manifest", "lora_roots")
    @classmethod
    def _no_secrets_here(cls, addresses: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in [addresses] if isinstance(addresses, str) else addresses:
            check_address(address)
        return addresses

    @property
    def device(self) -> str:
        return self.engine.device

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

    def recipe(self) -> dict[str, Any]:
        out = super().recipe()
        if not isinstance(self.engine.model, str):
            out["engine.model"] = [entry.recipe() for entry in self.engine.model]
        unsaid = {f"engine.{name}" for name in LATER if getattr(self.engine, name) == LATER[name]}
        return {name: value for name, value in out.items() if name not in unsaid}


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


Job = GenerateJob | DistillJob | IngestJob


def row_of(job: Job) -> type[KeyedRow]:
    """What a row of the job's manifest is."""
    match job:
        case GenerateJob():
            return PromptRow
        case DistillJob():
            return SourceRow
        case IngestJob():
            return SourceLine


def lineage_of(job: Job) -> frozenset[str]:
    """Columns that the job's manifest may have and that mean nothing for it, or not as a row's own
    settings."""
    if not isinstance(job, DistillJob):
        return frozenset()
    mask = ("mask",) if getattr(job.target, "mask", False) else ()
    return frozenset({*ImageRecord.model_fields, *TRAINING_SIZES, *mask})


# came after the first outputs, whose recipes do not name them
LATER: dict[str, Any] = {"approximate": (), "attention": "default", "compile": False}
