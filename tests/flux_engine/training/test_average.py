import torch
from torch import nn

from flux_engine.training.average import WeightAverage


def test_it_follows_fast_at_first_and_slowly_later() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage({"w": weight}, 0.9)
    weight.data.fill_(1.0)
    average.update(0)
    torch.testing.assert_close(average.tensors["w"], torch.tensor([0.9]))
    average.update(10_000)
    torch.testing.assert_close(average.tensors["w"], torch.tensor([0.91]))


def test_it_changes_places_with_the_weights_and_back() -> None:
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": weight}, 0.5)
    weight.data.fill_(3.0)
    average.swap()
    assert weight.tolist() == [1.0, 1.0]
    assert average.tensors["w"].tolist() == [3.0, 3.0]
    average.swap()
    assert weight.tolist() == [3.0, 3.0]


def test_it_is_taken_up_where_it_was() -> None:
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": weight}, 0.5)
    average.restore({"w": torch.tensor([5.0, 6.0])})
    assert average.tensors["w"].tolist() == [5.0, 6.0]
