"""What every job has that maps over rows, whatever the rows are."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from schemas.address import check_address
from schemas.base import Schema

Count = Annotated[int, Field(ge=1)]


class MappedJob(Schema):
    """Rows in, files of records out: how many at once, where, and what becomes of bad ones."""

    output: str
    rows_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 64
    workers: Literal["auto"] | Count | tuple[Count, Count] = "auto"
    worker_wait: Annotated[FiniteFloat, Field(ge=0.0)] = 0.0
    picture_roots: tuple[str, ...] = ()
    shard_retries: Annotated[int, Field(ge=0, le=100)] = 3
    max_rejected: Annotated[float, Field(ge=0.0)] | None = None
    row_timeout: Annotated[FiniteFloat, Field(gt=0.0)] | None = None

    @field_validator("output", "picture_roots")
    @classmethod
    def _no_secrets(cls, addresses: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in [addresses] if isinstance(addresses, str) else addresses:
            check_address(address)
        return addresses

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers {list(self.workers)}: the first is the smaller one")
        return self

    def recipe(self) -> dict[str, Any]:
        """Every setting that changes a byte under `data/`, flat, by its path in the file."""
        out: dict[str, Any] = {}
        flatten(self.model_dump(mode="json"), "", out)
        return {name: value for name, value in out.items() if not name.startswith(NOT_IN_RECIPE)}


NOT_IN_RECIPE = (
    "manifest",
    "output",
    "workers",
    "worker_wait",
    "picture_roots",
    "lora_roots",
    "shard_retries",
    "max_rejected",
    "row_timeout",
    "engine.device",
    "engine.vram_limit",
    "engine.lora_gib",
    "source.path",
    "source.ignore",
    "source.origin_file_pattern",
    "source.read_as.ignore",
    "source.dataset_base_path",
    "source.dataset_metadata_path",
    "source.read_as.path",
    "source.read_as.dataset_base_path",
    "source.read_as.dataset_metadata_path",
)


def flatten(value: Any, path: str, out: dict[str, Any]) -> None:
    """Nested mappings into `a.b: value`; lists stay whole."""
    if not isinstance(value, dict):
        out[path] = value
        return
    for name, inner in value.items():
        flatten(inner, f"{path}.{name}" if path else name, out)
