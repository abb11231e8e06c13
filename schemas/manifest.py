"""Rows in: one line of a manifest is one picture to make (or `samples_per_row` of them)."""

import builtins
from typing import Any

from pydantic import ConfigDict, field_validator, model_validator

from schemas.base import Schema
from schemas.lora import LoraEntries
from schemas.sampling import (
    Guidance,
    Prompt,
    RandDevice,
    Schedule,
    Seed,
    Shift,
    Side,
    Steps,
    Strength,
    T5Length,
    Tile,
)


class PictureRef(Schema):
    """A picture in a manifest: its bytes, or where they are. Bytes win."""

    model_config = ConfigDict(ser_json_bytes="base64")

    bytes: builtins.bytes | None = None
    path: str | None = None


class KeyedRow(Schema):
    """A row of any job; without a key one is made of where it stands and what it says."""

    key: str | None = None


class PromptRow(KeyedRow):
    """One row; a column that is absent or null leaves the word to the job's `sampling`."""

    prompt: Prompt
    negative_prompt: Prompt | None = None
    cfg_scale: Guidance | None = None
    embedded_guidance: Guidance | None = None
    height: Side | None = None
    width: Side | None = None
    seed: Seed | None = None
    rand_device: RandDevice | None = None
    num_inference_steps: Steps | None = None
    t5_sequence_length: T5Length | None = None
    schedule: Schedule | None = None
    sigma_shift: Shift | None = None
    denoising_strength: Strength | None = None
    tiled: bool | None = None
    tile_size: Tile | None = None
    tile_stride: Tile | None = None
    loras: LoraEntries | None = None
    input_image: PictureRef | None = None

    @field_validator("seed", mode="before")
    @classmethod
    def _whole(cls, seed: object) -> object:
        if isinstance(seed, float) and seed >= EXACT:
            raise ValueError(
                f"{seed:.0f} came as a float, which has lost its last digits: write the column as "
                "integers (pandas: Int64)"
            )
        return seed


class SourceRow(PromptRow):
    """A row to make a target of: a prompt, or a picture with its caption (`caption` is another
    name of `prompt`)."""

    caption: Prompt | None = None
    image: PictureRef | None = None

    @model_validator(mode="before")
    @classmethod
    def _captioned(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("caption") is None:
            return values
        if values.get("prompt") is not None and values["prompt"] != values["caption"]:
            raise ValueError("has a prompt and another caption: they are one thing, name it once")
        return values | {"prompt": values["caption"]}


EXACT = 2.0**53  # floats hold every integer below it
COLUMNS = tuple(PromptRow.model_fields)
SOURCE_COLUMNS = tuple(SourceRow.model_fields)
