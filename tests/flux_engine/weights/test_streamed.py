from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flux_engine.errors import CheckpointError
from flux_engine.weights.streamed import stream_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2), "c": torch.tensor(3.0)}
SHAPES = {key: tuple(tensor.shape) for key, tensor in TENSORS.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_written_is_read_with_its_words(dtype: torch.dtype, tmp_path: Path) -> None:
    file = tmp_path / "new" / "x.safetensors"
    words = {"title": "größer", "a": "1"}
    stream_tensors(file, SHAPES, TENSORS.__getitem__, dtype=dtype, metadata=words)
    read = load_file(file)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], tensor.to(dtype)) for key, tensor in TENSORS.items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == words
    assert [path.name for path in file.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_number_that_the_type_does_not_have_is_named_and_leaves_no_file(
    value: float, tmp_path: Path
) -> None:
    tensors = {**TENSORS, "a": torch.tensor([0.0, value])}
    with pytest.raises(CheckpointError, match=r"x: a: has values that are no numbers"):
        stream_tensors(
            tmp_path / "x", SHAPES, tensors.__getitem__, dtype=torch.float16, metadata={}
        )
    assert list(tmp_path.iterdir()) == []
