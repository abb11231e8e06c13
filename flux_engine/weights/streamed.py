"""Tensors one by one into a safetensors file that appears whole or not at all.

A model of any size is so written without a second copy of it in memory.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from flux_engine.errors import CheckpointError

WORDS: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
LENGTH = 8  # bytes before the header, which say how long it is; the header is a multiple of it


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
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    place = 0
    for key, shape in shapes.items():
        end = place + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": WORDS[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as opened:
            opened.write(len(text).to_bytes(LENGTH, "little"))
            opened.write(text)
            for key, shape in shapes.items():
                opened.write(content(tensor(key), shape, dtype, where=f"{file}: {key}"))
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def content(
    tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, where: str
) -> memoryview:
    """A tensor's bytes."""
    assert tuple(tensor.shape) == shape, where
    whole = tensor.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(whole).all():
        raise CheckpointError(where, reason=f"has values that are no numbers in {dtype}")
    return memoryview(whole.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
