"""Which model, and how it is held."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.base import Schema

BatchSize = Annotated[int, Field(ge=1, le=256)]
Approximate = Literal["fp8", "step_cache"]
Attention = Literal["default", "measured", "flash", "cudnn", "efficient", "math"]
StoredType = Literal["float8_e4m3fn", "bfloat16", "float32", "disk"]
StoredPlace = Literal["cpu", "cuda", "disk"]

STATES = ("offload", "onload", "preparing", "computation")


class ModelEntry(Schema):
    """One model file (or its shards): a local path, or a pattern in a hub's repository."""

    path: str | None = None
    model_id: str | None = None
    origin_file_pattern: str | None = None
    download_source: Literal["modelscope", "huggingface"] = "modelscope"
    offload_dtype: StoredType | None = None
    offload_device: StoredPlace | None = None
    onload_dtype: StoredType | None = None
    onload_device: StoredPlace | None = None
    preparing_dtype: StoredType | None = None
    preparing_device: StoredPlace | None = None
    computation_dtype: StoredType | None = None
    computation_device: StoredPlace | None = None

    def source(self) -> dict[str, Any]:
        """Where the files come from, by the names of `ModelSource`."""
        names = ("path", "model_id", "origin_file_pattern", "download_source")
        return {name: getattr(self, name) for name in names}

    def placements(self) -> dict[str, str | None]:
        """The four states, by the names of `Placements`."""
        fields = [f"{state}_{part}" for state in STATES for part in ("dtype", "device")]
        return {name: getattr(self, name) for name in fields}

    def recipe(self) -> dict[str, Any]:
        """What changes pixels: the files, and whether their weights are kept in eight bits."""
        kept = {getattr(self, f"{state}_dtype") for state in STATES}
        return self.source() | ({"kept": "float8_e4m3fn"} if "float8_e4m3fn" in kept else {})

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.model_id is None):
            raise ValueError("give either path or model_id")
        if (self.model_id is None) != (self.origin_file_pattern is None):
            raise ValueError("model_id and origin_file_pattern go together")
        return self


class EngineConfig(Schema):
    """`model`: a bundled name, a folder laid out as the FLUX.1-dev repository, or a list of files.

    The three batch sizes are the fixed shapes of the stages; they belong to the recipe. None lets
    the first worker of an output choose. `lora_gib` bounds the LoRAs that are kept in memory. What
    `approximate` names changes pictures: it is off unless asked for, and every record says it.
    """

    model: str | tuple[ModelEntry, ...] = "flux-shapes"
    tokenizer_1_path: str | None = None
    tokenizer_2_path: str | None = None
    torch_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    axes_dim: tuple[int, ...] | None = None
    vram_limit: float | None = None
    lora_gib: Annotated[float, Field(gt=0.0)] = 4.0
    text_batch: BatchSize | None = None
    micro_batch: BatchSize | None = None
    decode_batch: BatchSize | None = None
    approximate: tuple[Approximate, ...] = ()
    attention: Attention = "default"
    compile: bool = False

    @field_validator("approximate", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if len(set(self.approximate)) != len(self.approximate):
            raise ValueError("an approximation is named twice")
        return self
