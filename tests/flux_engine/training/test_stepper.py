import math

import pytest
import torch
from torch import Tensor, nn

from flux_engine.training.material import Material
from flux_engine.training.objective import Asks, Batch, Example
from flux_engine.training.optimizer import make_optimizer
from flux_engine.training.reduction import Alone
from flux_engine.training.stepper import MicroBatch, Stepper


class Line:
    """Fits y = w·x."""

    kinds = ("pictures",)

    def draw(self, material: Material, random: torch.Generator) -> Example:
        raise NotImplementedError

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        x, y = batch.tensors["x"], batch.tensors["y"]
        return (ask.weight * x - y).square()  # type: ignore[attr-defined]


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def work(step: int, *, broken: bool = False, shares: tuple[float, float] = (1.0, 1.0)) -> list:
    out = []
    for number, share in enumerate(shares):
        x = torch.randn(3, generator=torch.Generator().manual_seed(10 * step + number))
        y = 2 * x
        if broken and number == 1:
            y[2] = math.nan
        names = tuple(f"step {step} row {3 * number + i}" for i in range(3))
        out.append(MicroBatch(number, Line(), Batch(names, {"x": x, "y": y}), share))
    return out


def stepper(**settings: object) -> tuple[Weight, Stepper]:
    net = Weight()
    named = dict(net.named_parameters())
    optimizer = make_optimizer("adamw", named, rate=0.0, weight_decay=0.0)
    made = Stepper(net, named, optimizer, lambda _: 0.1, Alone(), total=2, **settings)  # type: ignore[arg-type]
    return net, made


def test_it_goes_down() -> None:
    net, made = stepper(averaging=0.9)
    facts = [made.step(step, work(step)) for step in range(60)]
    assert facts[-1].loss < 0.01 * facts[0].loss
    assert net.weight.item() == pytest.approx(2.0, abs=0.2)
    assert len(facts[0].losses) == 2
    assert facts[0].rate == 0.1
    assert facts[0].grad_norm > 0


def test_a_sample_whose_loss_is_no_number_is_named_and_the_weights_stay() -> None:
    net, made = stepper(averaging=0.9)
    made.step(0, work(0))
    before, average = net.weight.clone(), made.average.tensors["weight"].clone()  # type: ignore[union-attr]
    facts = made.step(1, work(1, broken=True))
    assert facts.skipped
    assert facts.broken == ("step 1 row 5",)
    assert torch.equal(net.weight, before)
    assert torch.equal(made.average.tensors["weight"], average)  # type: ignore[union-attr]
    assert not made.step(2, work(2)).skipped


def test_a_run_that_was_taken_up_goes_on_with_the_same_bits() -> None:
    straight, one = stepper(averaging=0.9)
    for step in range(6):
        one.step(step, work(step))
    _, first = stepper(averaging=0.9)
    for step in range(3):
        first.step(step, work(step))
    resumed, second = stepper(averaging=0.9)
    second.restore(first.state())
    for step in range(3, 6):
        second.step(step, work(step))
    assert torch.equal(straight.weight, resumed.weight)
    left, right = one.state(), second.state()
    assert left.told == right.told
    for part in ("trainable", "optimizer", "average"):
        kept, found = getattr(left, part), getattr(right, part)
        assert kept.keys() == found.keys()
        assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_a_micro_batch_counts_for_its_share() -> None:
    net, made = stepper(clip=None)
    made.step(0, work(0, shares=(1.0, 0.0)))
    alone, other = stepper(clip=None)
    other.step(0, work(0, shares=(1.0, 0.0))[:1])
    assert torch.equal(net.weight, alone.weight)


def test_a_gradient_longer_than_the_clip_is_cut_and_told_whole() -> None:
    net = Weight()
    named = dict(net.named_parameters())
    optimizer = make_optimizer("torch.optim.SGD", named, rate=0.0, weight_decay=0.0)
    made = Stepper(net, named, optimizer, lambda _: 1.0, Alone(), total=2, clip=0.5)  # type: ignore[arg-type]
    facts = made.step(0, work(0))
    assert facts.grad_norm > 0.5
    assert net.weight.item() == pytest.approx(0.5)
