"""Tensors as files hold them: little-endian bytes, a shape and a type's name."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.records import TensorRecord

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

assert sys.byteorder == "little", "tensors are stored as they lie in memory, which is little-endian"


def stored(tensor: Tensor, dtype: str | None = None) -> TensorRecord:
    """A tensor in the type named, or in its own."""
    tensor = tensor.detach().to(DTYPES[dtype] if dtype else tensor.dtype).cpu().contiguous()
    return TensorRecord(bytes=raw(tensor), shape=tuple(tensor.shape), dtype=NAMES[tensor.dtype])


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def loaded(data: bytes | memoryview, shape: Sequence[int], dtype: str) -> Tensor:
    """The tensor of such bytes, which it does not share."""
    if not len(data):
        return torch.empty(tuple(shape), dtype=DTYPES[dtype])
    flat = torch.frombuffer(bytearray(data), dtype=DTYPES[dtype])
    return flat.reshape(tuple(shape))
