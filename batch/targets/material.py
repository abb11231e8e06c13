"""What a row of pictures gives to a target: its picture at the row's size, and its mask by cell."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from batch.manifest import picture
from batch.media import Picture, Pictures, trained, weights
from batch.target_plan import SIZES
from flux_engine.request import GenerationRequest
from schemas.base import SchemaError
from schemas.manifest import PictureRef
from schemas.targets import CacheTarget, OfPictures, Target

CELL = 8  # pixels to a side of a latent's cell
MASK_TYPE = "float16"


@dataclass(frozen=True)
class Material:
    """A row's picture, and tensors that are kept beside its latent."""

    picture: Picture
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def found(
    pictures: Pictures,
    values: Mapping[str, Any],
    image: PictureRef,
    request: GenerationRequest,
    target: Target,
) -> Material:
    """PictureError for a picture or a mask that cannot be had, or is of another size than its row
    says. Where sizes follow from pictures, or masks lie over them, they are placed as trainers
    place them."""
    height, width = request.height, request.width
    masked = isinstance(target, CacheTarget) and target.mask
    if not masked and not (isinstance(target, OfPictures) and target.max_pixels):
        return Material(pictures.read(image, height, width))
    data, name = pictures.content(image, "image")
    wide, high = (values.get(column) for column in SIZES)
    told = (wide, high) if isinstance(wide, int) and isinstance(high, int) else None
    pixels, size = trained(data, name, height, width, told)
    made = Picture(pixels, size, hashlib.sha256(data).hexdigest())
    if not masked:
        return Material(made)
    mask = torch.ones(1, height, width)
    if values.get("mask") is not None:
        ref = PictureRef.parse(as_ref(values["mask"]), "mask")
        mask = weights(*pictures.content(ref, "mask"), height, width, size)
    return Material(made, {"mask": avg_pool2d(mask, CELL)})


def as_ref(value: Any) -> Any:
    """A mask's cell as a picture's is; SchemaError for several."""
    if isinstance(value, list):
        raise SchemaError("mask: has several files, and a picture has one")
    return picture("image", value)
