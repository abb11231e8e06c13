import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flux_engine.weights.writer import content_hash, write_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16)}


def test_what_is_written_is_read_with_its_words(tmp_path: Path) -> None:
    words = {"title": "größer", "a": "1"}
    write_tensors(tmp_path / "new" / "x.safetensors", TENSORS, words)
    read = load_file(tmp_path / "new" / "x.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "new" / "x.safetensors", "pt") as opened:
        assert opened.metadata() == words
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_the_same_content_has_the_same_bytes_and_hash_whatever_the_order(tmp_path: Path) -> None:
    turned = dict(reversed(TENSORS.items()))
    write_tensors(tmp_path / "x", TENSORS, {"a": "1", "b": "2", "c": "3"})
    write_tensors(tmp_path / "y", turned, {"c": "3", "b": "2", "a": "1"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert content_hash(TENSORS) == content_hash(turned)
    assert content_hash(TENSORS) != content_hash({**TENSORS, "a": torch.zeros(2)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.bool], ids=str)
def test_order_and_places_are_the_librarys(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        **TENSORS,
        "é": torch.tensor(1).to(dtype),
        "c": torch.tensor([1, 0]).to(dtype),
        "none": torch.empty(0, 3, dtype=dtype),
    }
    write_tensors(tmp_path / "x", tensors, {})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "y")
    ours, theirs = (parted((tmp_path / name).read_bytes()) for name in "xy")
    assert ours[1] == theirs[1]
    ours[0].pop("__metadata__")
    assert ours[0] == theirs[0]
    assert sorted(ours[0], key=lambda n: ours[0][n]["data_offsets"]) == list(ours[0])


def parted(data: bytes) -> tuple[dict[str, dict[str, Any]], bytes]:
    last = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:last]), data[last:]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    write_tensors(file, TENSORS, {})
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_tensors(file, {"z": torch.ones(1)}, {})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    table = torch.arange(8.0)
    write_tensors(tmp_path / "x", {"a|map": table, "b|map": table, "c": table[2:4]}, {})
    read = load_file(tmp_path / "x")
    assert torch.equal(read["a|map"], table)
    assert torch.equal(read["b|map"], table)
    assert torch.equal(read["c"], table[2:4])
