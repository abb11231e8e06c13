import pytest
import torch

from batch.targets.tensors import DTYPES, loaded, stored


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_comes_back_as_it_was(dtype: str) -> None:
    tensor = torch.randn(3, 4).to(DTYPES[dtype])
    record = stored(tensor)
    assert (record.dtype, record.shape, len(record.bytes)) == (dtype, (3, 4), tensor.nbytes)
    again = loaded(record.bytes, record.shape, record.dtype)
    assert torch.equal(again, tensor)
    assert again.dtype == tensor.dtype


def test_another_type_is_rounded_to_and_odd_layouts_are_straightened() -> None:
    tensor = torch.randn(3, 4).T
    record = stored(tensor, "bfloat16")
    assert torch.equal(loaded(record.bytes, (4, 3), "bfloat16"), tensor.bfloat16())


def test_nothing_is_something_too() -> None:
    record = stored(torch.empty(0, 2))
    assert loaded(record.bytes, record.shape, record.dtype).shape == (0, 2)
