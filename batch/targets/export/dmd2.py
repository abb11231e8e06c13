"""Pairs and paths as LMDB, as DMD2's and CausVid's datasets read them: one environment for each
size, `x_<row>_data` in float16 and `x_shape` with the number of rows first.

DMD2: `latents` is the noise, or a path's states from the noise on without its end; `images` the
end; `prompt_embeds_list` and `pooled_prompt_embeds` the text. CausVid: `latents` is all states, of
one frame each, the noise first and the end last; `prompts` the captions.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batch.errors import ExportError
from batch.targets.dataset import Part, TargetRow
from batch.targets.export.folder import whole, write_index
from batch.targets.export.source import (
    OneSchedule,
    Source,
    as_type,
    end_of,
    folder_of,
    source,
    text_of,
)
from schemas.exports import Dmd2Export

CARRIED: Mapping[str, Mapping[str, tuple[Part, ...]]] = {
    "dmd2": {"pair": ("tensors", "noise", "text"), "path": ("states", "text")},
    "causvid": {"pair": ("tensors", "noise"), "path": ("states",)},
}
COMMIT_BYTES = 64 * 2**20  # of values that wait in memory
PAGE = 4096
FIRST_MAP = 16 * 2**20


def export(address: str, out: Path, told: Dmd2Export) -> int:
    """The dataset in a new folder `out`; how many rows there were."""
    rows = source(address, told.reader, CARRIED[told.reader])
    with whole(out) as part:
        for bucket, numbers in rows.buckets():
            write_bucket(rows, numbers, part / folder_of(bucket), told)
    return len(rows.dataset)


def write_bucket(rows: Source, numbers: Sequence[int], folder: Path, told: Dmd2Export) -> None:
    folder.mkdir()
    schedule = OneSchedule()
    shapes: dict[str, tuple[int, ...]] = {}
    with Writer(folder) as writer:
        for place, row in enumerate(rows.rows(numbers)):
            if rows.kind == "path":
                schedule.add(row)
            for name, value in arrays_of(row, told.reader):
                shape = tuple(value.shape) if isinstance(value, Tensor) else ()
                if shapes.setdefault(name, shape) != shape:
                    raise ExportError(
                        f"row {row.number}: {name} is {shape}, and {shapes[name]} in rows before"
                    )
                data = value.numpy().tobytes() if isinstance(value, Tensor) else value.encode()
                writer.put(f"{name}_{place}_data", data)
        for name, shape in shapes.items():
            words = " ".join(str(side) for side in (len(numbers), *shape))
            writer.put(f"{name}_shape", words.encode())
    index = {
        "format": told.reader,
        "kind": rows.kind,
        "rows": len(numbers),
        "arrays": {name: [len(numbers), *shape] for name, shape in shapes.items()},
        "sigmas": schedule.sigmas,
        "identity": rows.dataset.identity,
    }
    write_index(folder, index)


def arrays_of(row: TargetRow, reader: str) -> Iterator[tuple[str, Tensor | str]]:
    """A row's values by the names that the reader asks for."""

    def half(tensor: Tensor, what: str) -> Tensor:
        return as_type(tensor, torch.float16, what, row)

    end = end_of(row)
    if row.states is None:
        assert row.noise is not None
        way = row.noise[None]
    else:
        way = row.states[:-1]
    if reader == "causvid":
        yield "latents", half(torch.cat([way, end[None].float()])[:, None], "its way")
        yield "prompts", row.record.caption
        return
    text = text_of(row)
    yield "latents", half(way[0] if row.states is None else way, "its way")
    yield "images", half(end, "its latent")
    yield "prompt_embeds_list", half(text.t5, "its text")
    yield "pooled_prompt_embeds", half(text.clip, "its pooled text")
    yield "prompts", row.record.caption


class Writer:
    """One environment, filled piece by piece; its map grows with what it holds."""

    def __init__(self, folder: Path) -> None:
        self._lmdb = lmdb()
        self._size = FIRST_MAP
        # nobody else knows the folder yet: no lock file, and one sync at the end
        self._env = self._lmdb.open(
            str(folder), map_size=self._size, lock=False, sync=False, meminit=False
        )
        self._waiting: list[tuple[bytes, bytes]] = []
        self._held = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
                self._env.sync(True)
        finally:
            self._env.close()

    def put(self, name: str, data: bytes) -> None:
        self._waiting.append((name.encode(), data))
        self._held += len(data)
        if self._held > COMMIT_BYTES:
            self._commit()

    def _commit(self) -> None:
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for name, data in self._waiting:
                        transaction.put(name, data)
                break
            except self._lmdb.MapFullError:
                need = sum(PAGE * (2 + len(data) // PAGE) for _, data in self._waiting)
                self._size += max(need, self._size)
                self._env.set_mapsize(self._size)
        self._waiting, self._held = [], 0


def lmdb() -> Any:
    """The package, which only this format needs."""
    try:
        import lmdb as package
    except ImportError:
        raise ExportError(
            "writing LMDB needs the package lmdb: install it, or this project with its extra export"
        ) from None
    return package
