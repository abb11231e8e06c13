"""The published checkpoints' layouts: every key and shape, and no values.

The lists are in tests/data/checkpoints, a file's keys under the file's name; `{0-18}` in a key
stands for each of these numbers.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
NAMES = sorted(path.stem for path in CHECKPOINTS.glob("*.json"))
RANGE = re.compile(r"\{(\d+)-(\d+)\}")
WIDTHS = {"BF16": 2, "F32": 4}

Layout = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """One checkpoint: the tensors of each of its files."""

    folder: str
    dtype: str
    parameters: int
    files: dict[str, Layout]

    @property
    def tensors(self) -> Layout:
        return {key: shape for keys in self.files.values() for key, shape in keys.items()}

    def meta(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        return {
            key: torch.empty(shape, dtype=dtype, device="meta")
            for key, shape in self.tensors.items()
        }


def published(name: str) -> Published:
    data = json.loads((CHECKPOINTS / f"{name}.json").read_text())
    files = {file: _spelled_out(keys) for file, keys in data["files"].items()}
    out = Published(data["folder"], data["dtype"] or "BF16", data["parameters"], files)
    assert len(out.tensors) == data["tensors"]
    assert sum(map(math.prod, out.tensors.values())) == data["parameters"]
    return out


def write_hollow(folder: Path, name: str) -> list[Path]:
    """The checkpoint's files with true headers and lengths, and zeros that take no room on disk."""
    checkpoint = published(name)
    width = WIDTHS[checkpoint.dtype]
    paths = []
    for file, keys in checkpoint.files.items():
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for key in sorted(keys):
            start, end = end, end + math.prod(keys[key]) * width
            header[key] = {
                "dtype": checkpoint.dtype,
                "shape": keys[key],
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        paths.append(folder / file)
        with paths[-1].open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    return paths


def _spelled_out(keys: dict[str, list[int]]) -> Layout:
    out: Layout = {}
    for key, shape in keys.items():
        span = RANGE.search(key)
        numbers = range(int(span[1]), int(span[2]) + 1) if span else [None]
        for number in numbers:
            out[key if span is None else key.replace(span[0], str(number))] = tuple(shape)
    return out
