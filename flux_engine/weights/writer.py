"""Tensors into one safetensors file that appears whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

LENGTH = 8  # bytes before the header, which say how long it is; the header is a multiple of it


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what follows the header of these tensors' file: of them all, but not of words."""
    digest = hashlib.sha256()
    for name in header_of(tensors):
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file, in the place of one that may be there; same content, same bytes. One tensor
    at a time comes to the host."""
    header = header_of(tensors)
    write_parts(file, metadata, header, (bytes_of(tensors[name]) for name in header))


def write_parts(
    file: Path,
    metadata: Mapping[str, str],
    header: Mapping[str, Any],
    content: Iterable[memoryview],
) -> None:
    """A safetensors file of its header and its content, which appears whole or not at all."""
    words = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(words, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as opened:
            opened.write(len(text).to_bytes(LENGTH, "little"))
            opened.write(text)
            for data in content:
                opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def header_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Type, shape and place of each, in the library's order and words: it is asked with tensors of
    these types that have nothing in them."""
    asked = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()})
    last = LENGTH + int.from_bytes(asked[:LENGTH], "little")
    header: dict[str, Any] = json.loads(asked[LENGTH:last])
    place = 0
    for name, told in header.items():
        end = place + tensors[name].nbytes
        told |= {"shape": list(tensors[name].shape), "data_offsets": [place, end]}
        place = end
    return header


def bytes_of(tensor: Tensor) -> memoryview:
    """What a file has of a tensor; no copy of one that lies on the host as it is written."""
    whole = tensor.detach().cpu().contiguous()
    return memoryview(whole.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
