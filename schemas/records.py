"""Rows out: one finished picture, or one row that could not be served."""

import builtins

from pydantic import Field

from schemas.base import Schema
from schemas.lora import LoraRecord


class ImageRecord(Schema):
    """One picture with every value that made it."""

    key: str
    sample: int
    prompt: str
    image: bytes
    seed: int
    negative_prompt: str
    cfg_scale: float
    embedded_guidance: float
    height: int
    width: int
    rand_device: str
    num_inference_steps: int
    t5_sequence_length: int
    schedule: str
    sigma_shift: float
    denoising_strength: float
    tiled: bool
    tile_size: int
    tile_stride: int
    loras: tuple[LoraRecord, ...] = ()
    micro_batch: int
    tokens_dropped: int
    approximate: str = ""
    halved: str = ""  # stages that had less memory than was planned, with their batch: other bits
    input_image_path: str | None = None
    input_image_sha256: str | None = None  # of the file, as it was read


class TensorRecord(Schema):
    """One tensor: little-endian bytes, shape, and a type's name (`bfloat16` is one)."""

    bytes: builtins.bytes
    shape: tuple[int, ...]
    dtype: str


class TargetRecord(Schema):
    """One row of a distillation dataset: where it comes from, every value that made it, and its
    tensors by name. Hashes and ids are hex here and bytes in a file."""

    sample_id: str
    key: str
    sample: int
    source_file: str
    source_row: int
    caption: str
    caption_id: str
    negative_caption: str | None = None
    negative_id: str | None = None
    height: int
    width: int
    seed: int | None = None
    noise_algo: str | None = None
    noise_hash: str | None = None
    sigmas: tuple[float, ...] = ()
    solver: str | None = None
    num_inference_steps: int | None = None
    schedule: str | None = None
    sigma_shift: float | None = None
    embedded_guidance: float | None = None
    cfg_scale: float | None = None
    t5_sequence_length: int
    t: tuple[float, ...] = ()
    t_noise_seed: tuple[int, ...] = ()
    t_noise_hash: tuple[str, ...] = ()
    guidances: tuple[float, ...] = ()
    micro_batch: int | None = None  # of its answers the smallest, if they were in several
    halved: str = ""  # as of a picture
    loras: tuple[LoraRecord, ...] = ()
    input_image_path: str | None = None
    input_image_sha256: str | None = None
    image_width: int | None = None  # of the picture itself, as it is shown
    image_height: int | None = None
    crop_box: tuple[int, ...] = ()  # left, top, right, bottom of what is seen of it
    check_rel: float | None = None
    digest: str
    tensors: dict[str, TensorRecord]


TARGET_COLUMNS = tuple(name for name in TargetRecord.model_fields if name != "tensors")


class StoredFile(Schema):
    """A file as it was found: its bytes, and its path in the source."""

    bytes: builtins.bytes
    path: str | None = None


class TrainingRecord(Schema):
    """One captioned picture to train on. Sizes are those of the picture as it is shown (upright),
    `files` the row's further files by column: one, several, or None."""

    key: str
    prompt: str
    image: StoredFile
    image_width: int
    image_height: int
    image_sha256: str  # of the file
    files: dict[str, StoredFile | tuple[StoredFile, ...] | None] = Field(default_factory=dict)


TRAINING_COLUMNS = tuple(name for name in TrainingRecord.model_fields if name != "files")
TRAINING_SIZES = ("image_width", "image_height", "image_sha256")


class RejectedRecord(Schema):
    """A row that got no picture: which, and why."""

    key: str
    sample: int
    manifest_file: str
    row: int
    error: str
    reason: str
    prompt: str | None


Made = ImageRecord | TargetRecord | TrainingRecord
Record = Made | RejectedRecord
