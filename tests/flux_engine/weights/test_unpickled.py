import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flux_engine.errors import CheckpointError
from flux_engine.weights.reader import read_metadata, read_shapes, read_tensors
from flux_engine.weights.stored import Stored

TENSORS = {
    "image_proj": {"a": torch.ones(2, 3), "b": torch.arange(4)},
    "ip_adapter": {"a": torch.full((5,), 2.0, dtype=torch.bfloat16)},
}


def saved(path: Path, value: object, **how: bool) -> Path:
    torch.save(value, path, **how)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_file_is_read_like_any_other_its_dictionaries_flattened(
    zipped: bool, tmp_path: Path
) -> None:
    file = saved(tmp_path / "w.bin", TENSORS, _use_new_zipfile_serialization=zipped)
    assert read_shapes([file]) == {
        "image_proj.a": Stored((2, 3), torch.float32),
        "image_proj.b": Stored((4,), torch.int64),
        "ip_adapter.a": Stored((5,), torch.bfloat16),
    }
    tensors = read_tensors([file], torch.float16)
    assert tensors["ip_adapter.a"].dtype == torch.float16
    assert tensors["image_proj.b"].tolist() == [0, 1, 2, 3]
    assert read_metadata(file) == {}


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch sprung",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path / "w.bin", {"a": torch.ones(1), "b": Trap()})
    with pytest.raises(CheckpointError, match="no file of weights alone"):
        read_shapes([file])
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_tensor_and_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    told: dict[str, Tensor | int] = {"a": torch.ones(1), "step": 3}
    with pytest.raises(CheckpointError, match="holds more than tensors: step is int"):
        read_shapes([saved(tmp_path / "w.bin", told)])
    (tmp_path / "cut.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="no file of weights alone"):
        read_shapes([tmp_path / "cut.bin"])
