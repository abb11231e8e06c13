from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flux_engine.errors import CheckpointError, SourceError
from flux_engine.weights.reader import read_shapes, read_tensors
from flux_engine.weights.stored import Stored
from tests.flux_engine.weights.published import published, write_hollow


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_file({"a": torch.ones(2, 3), "n": torch.arange(4)}, files[0])
    save_file({"b": torch.full((5,), 2.0, dtype=torch.bfloat16)}, files[1])
    return files


def test_shards_are_read_as_one(shards: list[Path]) -> None:
    assert read_shapes(shards) == {
        "a": Stored((2, 3), torch.float32),
        "n": Stored((4,), torch.int64),
        "b": Stored((5,), torch.bfloat16),
    }


def test_floating_point_is_cast_and_integers_are_not(shards: list[Path]) -> None:
    tensors = read_tensors(shards, torch.float16)
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {
        "a": torch.float16,
        "n": torch.int64,
        "b": torch.float16,
    }
    assert torch.equal(tensors["a"], torch.ones(2, 3, dtype=torch.float16))


def test_eight_bit_floats_are_widened(tmp_path: Path) -> None:
    file = tmp_path / "fp8.safetensors"
    stored = torch.tensor([1.0, -2.5]).to(torch.float8_e4m3fn)
    save_file({"a": stored}, file)
    assert read_tensors([file], torch.bfloat16)["a"].tolist() == [1.0, -2.5]


def test_a_key_in_two_files_is_named_with_both(shards: list[Path], tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "3.safetensors")
    with pytest.raises(CheckpointError, match=r"a \(in 1.safetensors and 3.safetensors\)"):
        read_shapes([*shards, tmp_path / "3.safetensors"])


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.ckpt"])
def test_a_pickle_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(SourceError, match="a pickle can run any code"):
        read_shapes([tmp_path / name])


def test_a_file_cut_short_is_named(shards: list[Path]) -> None:
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"1.safetensors: unreadable or cut short"):
        read_shapes(shards)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "unreadable or cut short"),
        (b"<html>not found</html>", "unreadable or cut short"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_something_else_under_the_name_is_refused(
    content: bytes, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_shapes([file])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent.safetensors: there is no such file"):
        read_shapes([tmp_path / "absent.safetensors"])


@pytest.mark.parametrize("name", ["flux1-dev-ae", "flux1-dev-transformer-diffusers", "t5"])
def test_the_shapes_of_files_in_full_size_are_read_from_their_headers(
    name: str, tmp_path: Path
) -> None:
    shapes = read_shapes(write_hollow(tmp_path, name))
    assert {key: info.shape for key, info in shapes.items()} == published(name).tensors
