import torch

from flux_engine.weights.stored import Stored, most_common, shapes_of


def test_tensors_without_values_have_shapes_too() -> None:
    assert shapes_of({"a": torch.empty(2, 3, device="meta")}) == {
        "a": Stored((2, 3), torch.float32)
    }


def test_the_size_that_most_agree_on_counts() -> None:
    assert most_common([3072, 3073, 3072], default=1) == 3072
    assert most_common([64, 65], default=1) == 64
    assert most_common([], default=1) == 1
