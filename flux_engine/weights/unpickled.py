"""Tensors of a `.bin` file, by torch's reader of weights alone, which runs no code of the file's.

Opened, it answers as an opened safetensors file does. Dictionaries inside are flattened: the tensor
`a` of `image_proj` is `image_proj.a`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flux_engine.errors import CheckpointError

SUFFIX = ".bin"


@dataclass(frozen=True)
class Slice:
    """A tensor of which only shape and type are asked for."""

    tensor: Tensor

    def get_shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def get_dtype(self) -> torch.dtype:
        return self.tensor.dtype


class Unpickled:
    """Its tensors by key, on one device."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> None:
        self.tensors, self.device = tensors, device

    def keys(self) -> list[str]:
        return list(self.tensors)

    def get_slice(self, key: str) -> Slice:
        return Slice(self.tensors[key])

    def get_tensor(self, key: str) -> Tensor:
        return self.tensors[key].contiguous().to(self.device)

    def metadata(self) -> dict[str, str]:
        """Such a file has none."""
        return {}


@contextmanager
def unpickled(file: Path, device: torch.device | str) -> Iterator[Unpickled]:
    """CheckpointError for what is no file of weights, or holds something else."""
    try:
        told = loaded(file)
    except Exception as error:  # unpicklers raise all sorts of things
        first = str(error).partition("\n")[0]
        raise CheckpointError(str(file), reason=f"no file of weights alone: {first}") from error
    tensors = dict(flat(told))
    if strange := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
        kinds = ", ".join(f"{key} is {type(tensors[key]).__name__}" for key in strange[:8])
        raise CheckpointError(str(file), reason=f"holds more than tensors: {kinds}")
    yield Unpickled(tensors, device)


def loaded(file: Path) -> Any:
    """Mapped to memory, but for the older form of such files, which is read whole."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        yield from flat(inner, f"{path}.{name}" if path else str(name))
