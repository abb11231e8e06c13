"""Pillow pictures into tensors and back; the tensors are (3, height, width) in −1…1."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def to_pixels(picture: Image.Image, height: int, width: int) -> Tensor:
    """A picture, upright and without transparency (laid over white), scaled to cover the size and
    cut about its centre."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # which Pillow would cut at 255
        picture = Image.fromarray((np.asarray(picture) / 257.0).round().astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    picture = picture.convert("RGB")
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return pixels.permute(2, 0, 1) / 127.5 - 1.0


def to_image(pixels_CHW: Tensor) -> Image.Image:
    """A picture of values around −1…1, rounded to 8 bits."""
    levels = ((pixels_CHW + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
