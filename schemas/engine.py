"""Which model, and how it is held."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Schema

BatchSize = Annotated[int, Field(ge=1, le=256)]


class ModelEntry(Schema):
    """One model file (or its shards): a local path, or a pattern in a hub's repository."""

    path: str | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: Literal["modelscope", "huggingface"] = "modelscope"

    def source(self) -> dict[str, Any]:
        """Where the files come from, by the names of `ModelSource`."""
        names = ("path", "model_id", "origin_file_pattern", "download_source")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.model_id is None):
            raise ValueError("give either path or model_id")
        if (self.model_id is None) != (self.origin_file_pattern is None):
            raise ValueError("model_id and origin_file_pattern go together")
        return self


class EngineConfig(Schema):
    """`model`: a bundled name, a folder laid out as the FLUX.1-dev repository, or a list of files.

    The three batch sizes are the fixed shapes of the stages; they belong to the recipe. None for
    `micro_batch` and `decode_batch` takes a rule of the picture's size. `lora_gib` bounds the LoRAs
    that are kept in memory.
    """

    model: str | tuple[ModelEntry, ...] = "flux-shapes"
    tokenizer_1_path: str | None = None
    tokenizer_2_path: str | None = None
    torch_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    axes_dim: tuple[int, ...] | None = None
    vram_limit: float | None = None
    lora_gib: Annotated[float, Field(gt=0.0)] = 4.0
    text_batch: BatchSize = 8
    micro_batch: BatchSize | None = None
    decode_batch: BatchSize | None = None
