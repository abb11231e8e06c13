"""Rows out: one finished picture, or one row that could not be served."""

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
    input_image_path: str | None = None
    input_image_sha256: str | None = None  # of the file, as it was read


class RejectedRecord(Schema):
    """A row that got no picture: which, and why."""

    key: str
    sample: int
    manifest_file: str
    row: int
    error: str
    reason: str
    prompt: str | None


Record = ImageRecord | RejectedRecord
