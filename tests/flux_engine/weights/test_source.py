from pathlib import Path
from typing import Any

import pytest

from flux_engine.errors import SettingError, SourceError
from flux_engine.weights.source import ModelSource, fetch


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "exactly one"),
        ({"path": "a", "model_id": "owner/name"}, "exactly one"),
        ({"model_id": "owner/name"}, "origin_file_pattern of owner/name is None"),
        ({"model_id": "owner/name", "origin_file_pattern": ""}, "origin_file_pattern"),
        ({"model_id": "owner/name", "origin_file_pattern": "../x"}, "origin_file_pattern"),
        ({"model_id": "name", "origin_file_pattern": "*"}, "owner/name"),
        ({"model_id": "../name", "origin_file_pattern": "*"}, "owner/name"),
        (
            {"model_id": "owner/name", "origin_file_pattern": "*", "download_source": "ftp"},
            "modelscope, huggingface",
        ),
    ],
)
def test_a_source_is_either_a_path_or_a_repository(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        ModelSource(**fields)


def test_a_file_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].safetensors")
    file = tmp_path / "a[1].safetensors"
    assert fetch(ModelSource(path=str(file))) == (file,)


def test_a_folder_gives_the_files_of_its_checkpoint(tmp_path: Path) -> None:
    touch(tmp_path, "m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors", "config.json")
    names = [file.name for file in fetch(ModelSource(path=str(tmp_path)))]
    assert names == ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]


def test_a_folder_without_weights_gives_all_its_files(tmp_path: Path) -> None:
    touch(tmp_path, "vocab.json", "merges.txt")
    names = [file.name for file in fetch(ModelSource(path=str(tmp_path)))]
    assert names == ["merges.txt", "vocab.json"]


def test_a_folder_that_has_no_other_weights_gives_its_pickles(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "pytorch_model.bin")
    assert [file.name for file in fetch(ModelSource(path=str(tmp_path)))] == ["pytorch_model.bin"]


def test_a_glob_is_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.safetensors", "b/1.safetensors", "a/3.safetensors", "a/3.json")
    found = fetch(ModelSource(path=f"{tmp_path}/**/*.safetensors"))
    assert [file.name for file in found] == ["3.safetensors", "1.safetensors", "2.safetensors"]


@pytest.mark.parametrize("path", ["*.safetensors", "flux1-dev.safetensors", "vae/*/x.safetensors"])
def test_a_path_without_a_file_is_told_what_there_is(path: str, tmp_path: Path) -> None:
    touch(tmp_path, "flux1-schnell.ckpt", "vae/config.json")
    with pytest.raises(SourceError, match=r"no such file; .* has (flux1-schnell.ckpt|config.json)"):
        fetch(ModelSource(path=str(tmp_path / path)))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no files here"):
        fetch(ModelSource(path=str(tmp_path)))
