"""Pillow pictures into tensors and back; the tensors are (3, height, width) in −1…1."""

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

TURNED = (5, 6, 7, 8)  # orientations in which width and height change places


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as the picture is shown; no pixel is read."""
    width, height = picture.size
    turned = picture.getexif().get(ExifTags.Base.Orientation) in TURNED
    return (height, width) if turned else (width, height)


def flattened(picture: Image.Image, ground: str = "white") -> Image.Image:
    """A picture in RGB, upright and without transparency: laid over the ground."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # which Pillow would cut at 255
        picture = Image.fromarray((np.asarray(picture) / 257.0).round().astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba)
    return picture.convert("RGB")


def to_pixels(picture: Image.Image, height: int, width: int) -> Tensor:
    """A picture, flattened, scaled to cover the size and cut about its centre."""
    picture = flattened(picture)
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return pixels_of(picture)


def training_pixels(picture: Image.Image, height: int, width: int) -> Tensor:
    """The same as trainers do it: scaled bilinearly to whole pixels, then cut."""
    return pixels_of(covering(flattened(picture), height, width))


def mask_weights(picture: Image.Image, height: int, width: int) -> Tensor:
    """A mask as (1, height, width) in 0…1, white is 1, placed as `training_pixels` places the
    picture that it belongs to; what is transparent is 0."""
    grey = covering(flattened(picture, "black").convert("L"), height, width)
    return torch.from_numpy(np.array(grey, dtype=np.float32))[None] / 255.0


def covering(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled by the larger of both ratios, then cut about its centre."""
    scale = max(width / picture.width, height / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def crop_box(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is seen of a picture of this width and height when it
    covers another size; in its own pixels, to the nearest."""
    scale = max(width / size[0], height / size[1])
    left, top = (size[0] - width / scale) / 2, (size[1] - height / scale) / 2
    return round(left), round(top), round(size[0] - left), round(size[1] - top)


def pixels_of(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return pixels.permute(2, 0, 1) / 127.5 - 1.0


def to_image(pixels_CHW: Tensor) -> Image.Image:
    """A picture of values around −1…1, rounded to 8 bits."""
    levels = ((pixels_CHW + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
