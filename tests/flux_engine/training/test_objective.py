import pytest
import torch

from flux_engine.errors import SettingError, TrainingError
from flux_engine.training.objective import Batch, Example, check_kind
from flux_engine.training.students import Kd


def example(name: str, **tensors: torch.Tensor) -> Example:
    return Example(name, tensors)


def test_samples_stand_side_by_side_in_order() -> None:
    a, b = (example(name, x=torch.full((2, 3), v)) for name, v in (("a", 1.0), ("b", 2.0)))
    made = Batch.of([a, b])
    assert made.names == ("a", "b")
    assert len(made) == 2
    assert made["x"][:, 0, 0].tolist() == [1, 2]


def test_samples_of_unlike_sizes_are_refused_by_name() -> None:
    a, b = example("row 1", x=torch.ones(2, 3)), example("row 9", x=torch.ones(2, 4))
    with pytest.raises(TrainingError, match=r"x of row 1 is 2×3, of row 9 2×4"):
        Batch.of([a, b])


def test_a_tensor_that_only_one_sample_has_is_an_error() -> None:
    a, b = example("row 1", x=torch.ones(2)), example("row 9", x=torch.ones(2), y=torch.ones(1))
    with pytest.raises(TrainingError, match=r"y of row 1 is missing, of row 9 1: "):
        Batch.of([a, b])


def test_unlike_numbers_of_steps_end_where_they_end() -> None:
    a, b = example("a", sigmas=torch.tensor([1.0, 0.0])), example("b", sigmas=torch.ones(4))
    assert Batch.of([a, b])["sigmas"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]


def test_a_dataset_that_an_objective_cannot_use_is_refused() -> None:
    check_kind("kd", Kd(), "velocity")
    with pytest.raises(SettingError, match=r"kd cannot learn from .* pair; it takes velocity"):
        check_kind("kd", Kd(), "pair")
