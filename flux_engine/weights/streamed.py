"""Tensors one by one into a safetensors file that appears whole or not at all.

A model of any size is so written without a second copy of it in memory.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flux_engine.errors import CheckpointError
from flux_engine.weights.writer import bytes_of, write_parts

WORDS: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def stream_tensors(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write `tensor(key)` of each key in `dtype`, in this order.

    CheckpointError names a tensor with NaN or infinity in it, be it for lack of range; then there
    is no file.
    """
    header: dict[str, Any] = {}
    place = 0
    for key, shape in shapes.items():
        end = place + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": WORDS[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    parts = (
        content(tensor(key), shape, dtype, where=f"{file}: {key}") for key, shape in shapes.items()
    )
    write_parts(file, metadata, header, parts)


def content(
    tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, where: str
) -> memoryview:
    """A tensor's bytes."""
    assert tuple(tensor.shape) == shape, where
    whole = tensor.detach().to("cpu", dtype)
    if not torch.isfinite(whole).all():
        raise CheckpointError(where, reason=f"has values that are no numbers in {dtype}")
    return bytes_of(whole)
