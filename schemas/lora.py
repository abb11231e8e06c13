"""One LoRA as a job file or a manifest row names it, and as a record tells of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from schemas.address import check_address
from schemas.base import Schema

MOST = 16  # of one row


class LoraEntry(Schema):
    """A file (`path`), or a model hub's repository (`model_id`, and a pattern if it has several).

    `merged` None: beside the weights if it is low-rank, else merged into a copy of them.
    """

    path: str | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: Literal["modelscope", "huggingface"] = "modelscope"
    scale: Annotated[FiniteFloat, Field(ge=-100.0, le=100.0)] = 1.0
    merged: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """A path alone is an entry too; a column's nulls are what was not said."""
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, dict):
            return {name: inner for name, inner in value.items() if inner is not None}
        return value

    @field_validator("path")
    @classmethod
    def _no_secrets(cls, path: str | None) -> str | None:
        if path is not None:
            check_address(path)
        return path

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.model_id is None):
            raise ValueError("give either path or model_id")
        if self.path is not None and self.origin_file_pattern is not None:
            raise ValueError("origin_file_pattern goes with model_id")
        return self

    @property
    def name(self) -> str:
        """What records call it."""
        pattern = f":{self.origin_file_pattern}" if self.origin_file_pattern else ""
        return self.path or f"{self.model_id}{pattern}"


class LoraRecord(Schema):
    """A LoRA that a picture was made with: its file, by name and by content, and how strongly."""

    name: str
    scale: float
    sha256: str


LoraEntries = Annotated[tuple[LoraEntry, ...], Field(max_length=MOST)]
