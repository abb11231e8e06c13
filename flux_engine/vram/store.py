"""Weights at home on the host: each unit one flat, aligned image, so that one copy moves it.

<folder>/<key>/<model>.images   the units' images one behind the other, each on a page of its own
<folder>/<key>/<model>.json     what lies where; written last: where it is, the images are whole

Workers of a host map the same file, and so share its pages. The key says what the weights are.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from flux_engine.vram.units import Unit

logger = logging.getLogger(__name__)

ALIGN = 256
PAGE = 4096
VERSION = 1  # of the layout and of how weights are quantised
STORE_VARIABLE = "FLUXMILL_IMAGES"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its image, and how it is read there."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    channels_last: bool

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def view(self, flat: Tensor) -> Tensor:
        raw = flat[self.offset : self.offset + self.nbytes].view(self.dtype)
        if not self.channels_last:
            return raw.view(self.shape)
        first, second, *sides = self.shape
        return raw.view(first, *sides, second).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Layout:
    """Tensors by name into one buffer of `nbytes`."""

    entries: tuple[Entry, ...]
    nbytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        entries, end = [], 0
        for key, tensor in tensors.items():
            last = tensor.ndim == 4 and not tensor.is_contiguous()
            entries.append(Entry(key, tuple(tensor.shape), tensor.dtype, end, last))
            end += -(-tensor.nbytes // ALIGN) * ALIGN
        return cls(tuple(entries), end)

    # a view that is made in inference mode is of another kind: compiled code would not know it
    @torch.inference_mode(mode=False)
    def views(self, flat: Tensor) -> dict[str, Tensor]:
        return {entry.key: entry.view(flat) for entry in self.entries}

    def described(self) -> list[list[Any]]:
        return [
            [e.key, list(e.shape), str(e.dtype), e.offset, e.channels_last] for e in self.entries
        ]


@dataclass(frozen=True)
class Image:
    """One unit's weights on the host, in one buffer."""

    unit: str
    layout: Layout
    flat: Tensor

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    def changed(self, tensors: Mapping[str, Tensor]) -> "Image":
        """A copy with these tensors in it; this one stays as it is."""
        flat = torch.empty_like(self.flat, pin_memory=self.flat.is_pinned())
        flat.copy_(self.flat)
        views = self.layout.views(flat)
        for key, tensor in tensors.items():
            views[key].copy_(tensor)
        return Image(self.unit, self.layout, flat)


def default_folder() -> Path:
    return Path(os.environ.get(STORE_VARIABLE) or "~/.cache/fluxmill/images").expanduser()


Ready = Callable[[Unit], None]


def as_is(unit: Unit) -> None:
    """Most units' tensors are what they are to be."""


def in_memory(units: Sequence[Unit], ready: Ready = as_is) -> dict[str, Image]:
    """Images of this process alone. `ready` is called before a unit's tensors are read."""
    out = {}
    for unit in units:
        ready(unit)
        layout = Layout.of(unit.tensors)
        flat = torch.zeros(layout.nbytes, dtype=torch.uint8)
        _fill(layout, unit, flat)
        out[unit.name] = Image(unit.name, layout, flat)
    return out


def on_disk(
    units: Sequence[Unit],
    folder: Path,
    key: str,
    model: str,
    *,
    writable: bool = False,
    ready: Ready = as_is,
) -> dict[str, Image]:
    """Images mapped from the cache; built there first, by one process of the host, if need be.

    `writable` maps the pages themselves, as locking them into memory may ask, and not a copy that
    is made when they are written to. OSError where the folder cannot be written.
    """
    layouts = [Layout.of(unit.tensors) for unit in units]
    ends = list(accumulate(-(-layout.nbytes // PAGE) * PAGE for layout in layouts))
    told = [
        {"unit": unit.name, "at": start, "entries": layout.described()}
        for unit, layout, start in zip(units, layouts, [0, *ends], strict=False)
    ]
    index = {"version": VERSION, "nbytes": ends[-1], "units": told}
    place = folder / key / f"{model}.images"
    if not _complete(place, index):
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not _complete(place, index):
                _build(place, index, units, layouts, ready)
    pages = _mapped(place, ends[-1], writable=writable)
    return {
        unit.name: Image(unit.name, layout, pages[start : start + layout.nbytes])
        for unit, layout, start in zip(units, layouts, [0, *ends], strict=False)
    }


def _mapped(place: Path, nbytes: int, *, writable: bool) -> Tensor:
    """The file's pages; where they are not ours to write to, as a mapping whose changes are."""
    try:
        return torch.from_file(str(place), shared=writable, size=nbytes, dtype=torch.uint8)
    except RuntimeError:  # torch's, whatever the system said
        if not writable:
            raise
    logger.warning("weight images cannot be written to", extra={"file": str(place)})
    return _mapped(place, nbytes, writable=False)


def _complete(place: Path, index: dict[str, Any]) -> bool:
    """Whether the file is there, whole, and of this layout."""
    try:
        there = json.loads(place.with_suffix(".json").read_text())
        return bool(there == index and place.stat().st_size == index["nbytes"])
    except (OSError, ValueError):
        return False


def _build(
    place: Path,
    index: dict[str, Any],
    units: Sequence[Unit],
    layouts: Sequence[Layout],
    ready: Ready,
) -> None:
    logger.info("building weight images", extra={"file": str(place), "bytes": index["nbytes"]})
    part = place.with_suffix(".part")
    try:
        with part.open("wb") as file:
            for unit, layout, told in zip(units, layouts, index["units"], strict=True):
                flat = torch.zeros(layout.nbytes, dtype=torch.uint8)
                ready(unit)
                _fill(layout, unit, flat)
                file.seek(told["at"])
                file.write(flat.numpy().data)
            file.truncate(index["nbytes"])
            file.flush()
            os.fsync(file.fileno())  # the index says that all is on the disk
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)  # a full disk is not left full
    note = place.with_suffix(".json.part")
    note.write_text(json.dumps(index))
    note.replace(place.with_suffix(".json"))


def _fill(layout: Layout, unit: Unit, flat: Tensor) -> None:
    for key, view in layout.views(flat).items():
        view.copy_(unit.tensors[key])
