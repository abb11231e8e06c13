"""Tars as FastGen's loader reads them: WebDataset, its own handlers for `.pth`, samples side by
side by torch's default collation."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from torch.utils.data import default_collate

from batch.errors import ExportError
from batch.targets.dataset import TargetDataset
from batch.targets.export.fastgen import export, places
from batch.targets.text import Told
from schemas.exports import FastGenExport
from tests.batch.targets.made import BUCKETS, Targets

PAIR = {"real": "latent.pth", "noise": "noise.pth", "condition": "txt_emb.pth"}
PATH = {"real": "latent.pth", "path": "path.pth", "condition": "txt_emb.pth"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset leaves them
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def samples(folder: Path, key_map: dict[str, str]) -> list[dict[str, Any]]:
    """All samples of a folder, its tars in the order of their numbers."""
    tars = sorted(folder.glob("*.tar"), key=lambda path: int(path.stem))
    decoder = wds.autodecode.Decoder([], only=list(key_map.values()))
    loader = wds.WebDataset([str(path) for path in tars], shardshuffle=False).map(decoder)
    return [
        {"fname": item["__key__"]} | {name: item[member] for name, member in key_map.items()}
        for item in loader
    ]


def conditioned(sample: dict[str, Any], text: Told | None) -> None:
    assert text is not None
    pooled, states = sample["condition"]
    assert torch.equal(pooled, text.clip)
    assert torch.equal(states, text.t5)


def test_pairs_come_back(targets: Targets, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(str(targets("pair")), out, FastGenExport(rows_per_tar=2)) == 8
    dataset = TargetDataset(targets("pair"))
    assert sorted(path.name for path in out.iterdir()) == ["32x64", "64x64"]
    for (height, width), numbers in dataset.buckets().items():
        found = samples(out / f"{height}x{width}", PAIR)
        assert len(found) == BUCKETS[height, width]
        for sample, number in zip(found, numbers.tolist(), strict=True):
            row = dataset[number]
            assert row.noise is not None
            assert sample["fname"] == row.record.sample_id
            assert torch.equal(sample["real"], row.tensors["latent"])
            assert torch.equal(sample["noise"], row.noise)
            assert (sample["real"].dtype, sample["noise"].dtype) == (torch.float16, torch.float32)
            conditioned(sample, row.text)
        batch = default_collate(found)
        pooled, states = batch["condition"]
        assert (pooled.shape, states.shape) == ((len(found), 64), (len(found), 20, 64))
        assert batch["real"].shape == (len(found), 16, height // 8, width // 8)


@pytest.mark.parametrize(("name", "states"), [("path", 4), ("path32", 4), ("path32", None)])
def test_paths_come_back(targets: Targets, tmp_path: Path, name: str, states: int | None) -> None:
    out = tmp_path / "out"
    export(str(targets(name)), out, FastGenExport(states=states))
    dataset = TargetDataset(targets(name))
    for (height, width), numbers in dataset.buckets().items():
        folder = out / f"{height}x{width}"
        index = json.loads((folder / "index.json").read_text())
        for sample, number in zip(samples(folder, PATH), numbers.tolist(), strict=True):
            row = dataset[number]
            assert row.states is not None
            assert row.noise is not None
            segments = len(row.states) - 1
            chosen = list(places(segments, states))
            assert sample["path"].shape == (states or segments, 16, height // 8, width // 8)
            assert torch.equal(sample["path"], row.states[chosen])
            assert torch.equal(sample["path"][0], row.noise)
            assert torch.equal(sample["real"], row.states[-1])
            assert index["path_timesteps"] == [row.record.sigmas[place] for place in chosen]
            conditioned(sample, row.text)
        assert index["path_timesteps"][0] == 1.0


def test_states_are_as_evenly_spread_as_they_are() -> None:
    assert places(28, 4) == (0, 7, 14, 21)
    assert places(4, 4) == places(4, None) == (0, 1, 2, 3)


def test_tensors_load_without_trust(targets: Targets, tmp_path: Path) -> None:
    export(str(targets("pair")), tmp_path / "out", FastGenExport())
    with tarfile.open(tmp_path / "out" / "64x64" / "00000.tar") as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".pth")]
        assert len(members) == 3 * BUCKETS[64, 64]
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            loaded = torch.load(io.BytesIO(file.read()), weights_only=True)
            for tensor in loaded if isinstance(loaded, tuple) else (loaded,):
                assert isinstance(tensor, torch.Tensor)
                assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_shards_are_counted_and_lineage_stands_beside(targets: Targets, tmp_path: Path) -> None:
    export(str(targets("pair")), tmp_path / "out", FastGenExport(rows_per_tar=2))
    folder = tmp_path / "out" / "64x64"
    counts = {"00000.tar": 2, "00001.tar": 2, "00002.tar": 1}
    assert json.loads((folder / "shard_count.json").read_text()) == counts
    index = json.loads((folder / "index.json").read_text())
    dataset = TargetDataset(targets("pair"))
    assert (index["rows"], index["shards"]) == (5, counts)
    assert index["identity"] == dataset.identity
    with tarfile.open(folder / "00000.tar") as tar:
        file = tar.extractfile(f"{dataset[0].record.sample_id}.json")
        assert file is not None
        told = json.loads(file.read())
    assert (told["caption"], told["seed"]) == (dataset[0].record.caption, dataset[0].record.seed)


def test_more_states_than_segments_are_refused(targets: Targets, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has 4 segments, and 5 states are wanted"):
        export(str(targets("path")), tmp_path / "out", FastGenExport(states=5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cache", "velocity", "feature"])
def test_other_kinds_are_refused(targets: Targets, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=f"{name} targets, which fastgen cannot carry"):
        export(str(targets(name)), tmp_path / "out", FastGenExport())


def test_the_same_dataset_makes_the_same_bytes(targets: Targets, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(str(targets("pair")), tmp_path / name, FastGenExport())
    for path in (tmp_path / "a").rglob("*.tar"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()
