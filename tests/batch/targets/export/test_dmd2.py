"""LMDB as DMD2's and CausVid's datasets read it: a shape by name, rows by number, float16."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

from batch.errors import ExportError
from batch.targets.dataset import TargetDataset
from batch.targets.export.dmd2 import Writer, export
from schemas.exports import Dmd2Export
from tests.batch.targets.made import BUCKETS, Targets


class Reader:
    """Opens an environment as those datasets do."""

    def __init__(self, folder: Path) -> None:
        self.env = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)

    def get(self, name: str) -> Any:
        with self.env.begin() as transaction:
            return transaction.get(name.encode())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(map(int, self.get(f"{name}_shape").decode().split()))

    def row(self, name: str, number: int) -> torch.Tensor:
        array = np.frombuffer(self.get(f"{name}_{number}_data"), dtype=np.float16)
        return torch.tensor(array.reshape(self.shape(name)[1:]))

    def names(self) -> set[str]:
        with self.env.begin() as transaction:
            return {key.decode() for key, _ in transaction.cursor()}


def half(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.half()


def test_pairs_come_back(targets: Targets, tmp_path: Path) -> None:
    assert export(str(targets("pair")), tmp_path / "out", Dmd2Export()) == 8
    dataset = TargetDataset(targets("pair"))
    for (height, width), numbers in dataset.buckets().items():
        reader = Reader(tmp_path / "out" / f"{height}x{width}")
        count = BUCKETS[height, width]
        cells = (height // 8, width // 8)
        assert reader.shape("images") == reader.shape("latents") == (count, 16, *cells)
        assert reader.shape("prompt_embeds_list") == (count, 20, 64)
        assert reader.shape("pooled_prompt_embeds") == (count, 64)
        for place, number in enumerate(numbers.tolist()):
            row = dataset[number]
            assert row.text is not None
            assert torch.equal(reader.row("images", place), row.tensors["latent"])
            assert torch.equal(reader.row("latents", place), half(row.noise))
            assert torch.equal(reader.row("prompt_embeds_list", place), row.text.t5.half())
            assert torch.equal(reader.row("pooled_prompt_embeds", place), row.text.clip.half())
            assert reader.get(f"prompts_{place}_data").decode() == row.record.caption


def test_paths_come_back_with_their_states(targets: Targets, tmp_path: Path) -> None:
    export(str(targets("path")), tmp_path / "out", Dmd2Export())
    dataset = TargetDataset(targets("path"))
    reader = Reader(tmp_path / "out" / "64x64")
    assert reader.shape("latents") == (5, 4, 16, 8, 8)
    for place, number in enumerate(dataset.buckets()[64, 64].tolist()):
        row = dataset[number]
        assert row.states is not None
        assert torch.equal(reader.row("latents", place), row.states[:-1].half())
        assert torch.equal(reader.row("latents", place)[0], half(row.noise))
        assert torch.equal(reader.row("images", place), row.states[-1].half())
    index = json.loads((tmp_path / "out" / "64x64" / "index.json").read_text())
    assert tuple(index["sigmas"]) == dataset[0].record.sigmas
    assert index["identity"] == dataset.identity


@pytest.mark.parametrize(("name", "count"), [("path", 5), ("pair", 2), ("textless", 2)])
def test_causvid_reads_all_states_of_one_frame(
    targets: Targets, tmp_path: Path, name: str, count: int
) -> None:
    export(str(targets(name)), tmp_path / "out", Dmd2Export(reader="causvid"))
    dataset = TargetDataset(targets(name))
    # its sharding dataset opens each entry of the folder as an environment
    assert sorted(os.listdir(tmp_path / "out")) == ["32x64", "64x64"]
    for (height, width), numbers in dataset.buckets().items():
        reader = Reader(tmp_path / "out" / f"{height}x{width}")
        shape = (len(numbers), count, 1, 16, height // 8, width // 8)
        assert reader.shape("latents") == shape
        for place, number in enumerate(numbers.tolist()):
            row = dataset[number]
            way = reader.row("latents", place)[:, 0]
            assert torch.equal(way[0], half(row.noise))
            wanted = row.states if row.states is not None else row.tensors["latent"][None]
            assert torch.equal(way[-len(wanted) :], wanted.half())
            assert reader.get(f"prompts_{place}_data").decode() == row.record.caption
        assert {key.split("_")[0] for key in reader.names()} == {"latents", "prompts"}


def test_a_map_grows_with_what_it_holds(tmp_path: Path) -> None:
    block = os.urandom(3 * 2**20)
    with Writer(tmp_path) as writer:
        for place in range(12):
            writer.put(f"x_{place}_data", block + bytes([place]))
    reader = Reader(tmp_path)
    assert all(reader.get(f"x_{place}_data") == block + bytes([place]) for place in range(12))


@pytest.mark.parametrize("reader", ["dmd2", "causvid"])
@pytest.mark.parametrize("name", ["cache", "velocity", "feature"])
def test_other_kinds_are_refused(targets: Targets, tmp_path: Path, name: str, reader: Any) -> None:
    with pytest.raises(ExportError, match=f"{name} targets, which {reader} cannot carry"):
        export(str(targets(name)), tmp_path / "out", Dmd2Export(reader=reader))
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_asked_for_by_name(
    targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ExportError, match="needs the package lmdb"):
        export(str(targets("pair")), tmp_path / "out", Dmd2Export())
    assert list(tmp_path.iterdir()) == []
