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


def test_it_follows_parameters_of_few_digits_as_those_of_many() -> None:
    held = {
        str(dtype): nn.Parameter(torch.ones(2, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    average = WeightAverage(held, 0.999)
    for weight in held.values():
        weight.data.fill_(1.5)
    for step in range(10_000, 12_000):
        average.update(step)
    wide, narrow = average.tensors.values()
    assert torch.equal(wide, narrow)
    assert wide[0] > 1.4
    before = narrow.clone()
    average.swap()
    assert torch.equal(held["torch.bfloat16"], before.bfloat16())
    average.swap()
    assert torch.equal(narrow, before)
    assert held["torch.bfloat16"].tolist() == [1.5, 1.5]
