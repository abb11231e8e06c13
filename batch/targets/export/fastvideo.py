"""Caches and paths as Parquet, as FastVideo's map-style dataset reads them: triples `x_bytes`,
`x_shape`, `x_dtype`, all of them float32, for that reader looks at no type.

A picture is a video of one frame. Of a path, state k stands at timestep k (1000 σ), from the noise
to the end. CLIP's vector, for which its schema has no place, stands beside.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from batch.errors import ExportError
from batch.targets.dataset import Part, TargetRow
from batch.targets.export.folder import whole, write_index
from batch.targets.export.source import Source, as_type, folder_of, source, text_of
from batch.targets.layout import triple
from batch.targets.tensors import raw
from schemas.exports import FastVideoExport

CARRIED: Mapping[str, tuple[Part, ...]] = {
    "cache": ("tensors", "text"),
    "path": ("states", "text"),
}
TENSORS: Mapping[str, tuple[str, ...]] = {
    "cache": ("vae_latent", "text_embedding", "pooled_embedding"),
    "path": ("text_embedding", "trajectory_latents", "trajectory_timesteps", "pooled_embedding"),
}
WORDS = {"file_name": pa.string(), "caption": pa.string(), "media_type": pa.string()}
SIZES = {
    "width": pa.int64(),
    "height": pa.int64(),
    "num_frames": pa.int64(),
    "duration_sec": pa.float64(),
    "fps": pa.float64(),
}
GROUP_BYTES = 16 * 2**20
TIMESTEPS = 1000.0


def export(address: str, out: Path, told: FastVideoExport) -> int:
    """The dataset in a new folder `out`; how many rows there were."""
    rows = source(address, "fastvideo", CARRIED)
    if rows.dataset.identity["target"].get("moments"):
        raise ExportError(
            f"{address}: holds moments, and fastvideo takes one latent: distil it without moments"
        )
    if rows.dataset.identity["target"].get("mask"):
        raise ExportError(
            f"{address}: holds masks, and fastvideo has no place for them: distil it without mask"
        )
    with whole(out) as part:
        for bucket, numbers in rows.buckets():
            write_bucket(rows, numbers, part / folder_of(bucket), told)
    return len(rows.dataset)


def schema_of(kind: str) -> pa.Schema:
    fields = [pa.field("id", pa.string())]
    for name in TENSORS[kind]:
        data, shape, dtype = triple(name)
        fields += [
            pa.field(data, pa.binary()),
            pa.field(shape, pa.list_(pa.int64())),
            pa.field(dtype, pa.string()),
        ]
    others = WORDS | (SIZES if kind == "cache" else {})
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in others.items())])


def write_bucket(rows: Source, numbers: Sequence[int], folder: Path, told: FastVideoExport) -> None:
    folder.mkdir()
    schema = schema_of(rows.kind)
    for file, first in enumerate(range(0, len(numbers), told.rows_per_file)):
        some = numbers[first : first + told.rows_per_file]
        with pq.ParquetWriter(folder / f"data_{file:05d}.parquet", schema) as writer:
            for group in groups(rows.rows(some), rows.kind):
                writer.write_table(pa.Table.from_pylist(group, schema))
    index = {
        "format": "fastvideo",
        "kind": rows.kind,
        "rows": len(numbers),
        "identity": rows.dataset.identity,
    }
    write_index(folder, index)


def groups(rows: Iterator[TargetRow], kind: str) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        group.append(record_of(row, kind))
        held += sum(len(value) for value in group[-1].values() if isinstance(value, bytes))
        if held > GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def record_of(row: TargetRow, kind: str) -> dict[str, Any]:
    text, record = text_of(row), row.record
    tensors: dict[str, Tensor] = {"text_embedding": text.t5, "pooled_embedding": text.clip}
    out: dict[str, Any] = {
        "id": record.sample_id,
        "file_name": record.sample_id,
        "caption": record.caption,
    }
    if kind == "cache":
        tensors["vae_latent"] = row.tensors["latent"][:, None]
        out |= {
            "media_type": "image",
            "width": record.width,
            "height": record.height,
            "num_frames": 1,
            "duration_sec": 0.0,
            "fps": 0.0,
        }
    else:
        assert row.states is not None
        tensors["trajectory_latents"] = row.states[:, :, None]
        tensors["trajectory_timesteps"] = TIMESTEPS * torch.tensor(record.sigmas)
        out["media_type"] = "text"
    for name, tensor in tensors.items():
        floats = as_type(tensor, torch.float32, name, row)
        out |= dict(zip(triple(name), (raw(floats), list(floats.shape), "float32"), strict=True))
    return out
