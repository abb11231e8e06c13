"""Parquet as FastVideo's map-style dataset reads it: files below a folder in the order of their
paths, one row group to dicts, each `x_bytes` as float32 in `x_shape`, whatever `x_dtype` says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from batch.errors import ExportError
from batch.targets.dataset import TargetDataset
from batch.targets.export.fastvideo import export
from schemas.exports import FastVideoExport
from tests.batch.targets.made import Targets

# what its schemas for text-to-video and for trajectories with text list
CACHE = {
    *("id", "file_name", "caption", "media_type", "width", "height", "num_frames"),
    *("duration_sec", "fps"),
    *(f"{x}_{y}" for x in ("vae_latent", "text_embedding") for y in ("bytes", "shape", "dtype")),
}
PATH = {
    *("id", "file_name", "caption", "media_type"),
    *(
        f"{x}_{y}"
        for x in ("text_embedding", "trajectory_latents", "trajectory_timesteps")
        for y in ("bytes", "shape", "dtype")
    ),
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            columns = file.read_row_group(group).to_pydict()
            count = len(columns["id"])
            out += [{name: values[i] for name, values in columns.items()} for i in range(count)]
        file.close()
    return out


def floats(row: dict[str, Any], name: str) -> torch.Tensor:
    data = np.frombuffer(row[f"{name}_bytes"], dtype=np.float32).reshape(row[f"{name}_shape"])
    assert row[f"{name}_dtype"] == "float32"
    return torch.from_numpy(data.copy())


def test_caches_come_back(targets: Targets, tmp_path: Path) -> None:
    assert export(str(targets("cache")), tmp_path / "out", FastVideoExport(rows_per_file=2)) == 8
    dataset = TargetDataset(targets("cache"))
    for (height, width), numbers in dataset.buckets().items():
        folder = tmp_path / "out" / f"{height}x{width}"
        assert len(list(folder.glob("*.parquet"))) == -(-len(numbers) // 2)
        for found, number in zip(rows_of(folder), numbers.tolist(), strict=True):
            row = dataset[number]
            assert row.text is not None
            assert set(found) >= CACHE
            assert found["id"] == row.record.sample_id
            assert found["caption"] == row.record.caption
            assert (found["height"], found["width"]) == (height, width)
            latent = floats(found, "vae_latent")
            assert latent.shape == (16, 1, height // 8, width // 8)
            assert torch.equal(latent[:, 0], row.tensors["latent"].float())
            assert torch.equal(floats(found, "text_embedding"), row.text.t5.float())
            assert torch.equal(floats(found, "pooled_embedding"), row.text.clip.float())


def test_paths_come_back(targets: Targets, tmp_path: Path) -> None:
    export(str(targets("path")), tmp_path / "out", FastVideoExport())
    dataset = TargetDataset(targets("path"))
    for (height, width), numbers in dataset.buckets().items():
        folder = tmp_path / "out" / f"{height}x{width}"
        for found, number in zip(rows_of(folder), numbers.tolist(), strict=True):
            row = dataset[number]
            assert row.states is not None
            assert row.text is not None
            assert set(found) >= PATH
            way, steps = floats(found, "trajectory_latents"), floats(found, "trajectory_timesteps")
            assert way.shape == (5, 16, 1, height // 8, width // 8)
            assert torch.equal(way[:, :, 0], row.states)
            assert torch.equal(steps, 1000 * torch.tensor(row.record.sigmas))
            assert (float(steps[0]), float(steps[-1])) == (1000.0, 0.0)
            assert torch.equal(floats(found, "text_embedding"), row.text.t5.float())
        index = json.loads((folder / "index.json").read_text())
        assert (index["rows"], index["identity"]) == (len(numbers), dataset.identity)


def test_large_rows_are_cut_into_groups(
    targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.targets.export.fastvideo.GROUP_BYTES", 1)
    export(str(targets("cache")), tmp_path / "out", FastVideoExport())
    (path,) = (tmp_path / "out" / "64x64").glob("*.parquet")
    assert pq.read_metadata(path).num_row_groups == 5


def test_moments_are_refused(targets: Targets, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds moments, and fastvideo takes one latent"):
        export(str(targets("moments")), tmp_path / "out", FastVideoExport())


@pytest.mark.parametrize("name", ["pair", "velocity", "feature"])
def test_other_kinds_are_refused(targets: Targets, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=f"{name} targets, which fastvideo cannot carry"):
        export(str(targets(name)), tmp_path / "out", FastVideoExport())
    assert list(tmp_path.iterdir()) == []
