"""Pairs and paths as WebDataset tars, as FastGen's loaders read them.

`OUT/1024x1024/00000.tar` holds `<sample id>.latent.pth`, `.noise.pth` or `.path.pth`,
`.txt_emb.pth` and `.json` of each row. FastGen's FLUX takes a pair (pooled, states) for its text,
which no array file holds; so these are files of `torch.save`, with tensors and nothing else in
them: they load with `weights_only=True`.
"""

import io
import json
import tarfile
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
    end_of,
    folder_of,
    name_of,
    source,
    text_of,
    told_of,
)
from flux_engine.sampling.trace import bounds
from schemas.exports import FastGenExport

CARRIED: Mapping[str, tuple[Part, ...]] = {
    "pair": ("tensors", "noise", "text"),
    "path": ("states", "text"),
}
COUNTS = "shard_count.json"  # what FastGen's `shard_count_file` wants
Member = Tensor | tuple[Tensor, ...]


def export(address: str, out: Path, told: FastGenExport) -> int:
    """The dataset in a new folder `out`; how many rows there were."""
    rows = source(address, "fastgen", CARRIED)
    with whole(out) as part:
        for bucket, numbers in rows.buckets():
            write_bucket(rows, numbers, part / folder_of(bucket), told)
    return len(rows.dataset)


def write_bucket(rows: Source, numbers: Sequence[int], folder: Path, told: FastGenExport) -> None:
    folder.mkdir()
    schedule = OneSchedule()
    counts: dict[str, int] = {}
    for first in range(0, len(numbers), told.rows_per_tar):
        some = numbers[first : first + told.rows_per_tar]
        name = f"{len(counts):05d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows.rows(some):
                if rows.kind == "path":
                    schedule.add(row)
                for member, data in files_of(row, told.states):
                    add(tar, f"{row.record.sample_id}.{member}", data)
        counts[name] = len(some)
    (folder / COUNTS).write_text(json.dumps(counts) + "\n")
    index: dict[str, Any] = {
        "format": "fastgen",
        "kind": rows.kind,
        "rows": len(numbers),
        "shards": counts,
        "identity": rows.dataset.identity,
    }
    if (sigmas := schedule.sigmas) is not None:
        index["sigmas"] = sigmas
        index["path_timesteps"] = [sigmas[place] for place in places(len(sigmas) - 1, told.states)]
    write_index(folder, index)


def places(segments: int, states: int | None) -> tuple[int, ...]:
    """Which of a path's states are written: from the noise on, without the end."""
    return bounds(segments, states)[:-1]


def files_of(row: TargetRow, states: int | None) -> Iterator[tuple[str, bytes]]:
    """A row's members, by what follows its name."""
    text = text_of(row)
    yield "latent.pth", saved(end_of(row))
    if row.states is None:
        assert row.noise is not None
        yield "noise.pth", saved(row.noise)
    else:
        segments = len(row.states) - 1
        if states is not None and segments < states:
            raise ExportError(
                f"{name_of(row)}: its path has {segments} segments, and {states} states are "
                "wanted: set states to what there is, or distil it with more segments"
            )
        yield "path.pth", saved(row.states[list(places(segments, states))])
    yield "txt_emb.pth", saved((text.clip, text.t5))
    yield "json", json.dumps(told_of(row), sort_keys=True, ensure_ascii=False).encode()


def saved(member: Member) -> bytes:
    """Tensors in torch's own format; a view brings no more along than it shows."""
    one = member.clone() if isinstance(member, Tensor) else tuple(t.clone() for t in member)
    stream = io.BytesIO()
    torch.save(one, stream)
    return stream.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
