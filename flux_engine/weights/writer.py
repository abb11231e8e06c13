"""Tensors into one safetensors file that appears whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

LENGTH = 8  # bytes before the header, which say how long it is; the header is a multiple of it


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what follows the header of these tensors' file: of them all, but not of words."""
    return hashlib.sha256(parts_of(tensors)[1]).hexdigest()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file, in the place of one that may be there; same content, same bytes."""
    header, data = parts_of(tensors)
    write_parts(file, metadata, header, [data])


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


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the host, each in memory of its own: an optimizer in eight bits has one table for all its
    parameters, and the library writes nothing that two names share."""
    out: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().contiguous().cpu()
        place = here.untyped_storage().data_ptr()
        out[name] = here.clone() if place in held else here
        held.add(place)
    return out


def parts_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], memoryview]:
    """The header and the content of these tensors' file. The library has no fixed order of words,
    so the header is put together here."""
    data = save(apart(tensors))
    last = LENGTH + int.from_bytes(data[:LENGTH], "little")
    return json.loads(data[LENGTH:last]), memoryview(data)[last:]
