import pytest
import torch

from flux_engine.weights.lora.changes import LowRank
from flux_engine.weights.lora.reduce import low_rank_of, reduced


def best(delta: torch.Tensor, rank: int) -> float:
    s = torch.linalg.svdvals(delta.double())
    return float(s[rank:].square().sum().sqrt() / s.square().sum().sqrt())


def test_a_low_rank_change_is_reduced_to_the_best_one() -> None:
    torch.manual_seed(0)
    change = LowRank(torch.randn(6, 20), torch.randn(30, 6), 2.0)
    made, lost = reduced(change, 3)
    assert made.rank == 3
    assert lost == pytest.approx(best(change.delta(), 3), rel=1e-5)
    error = (made.delta() - change.delta()).norm() / change.delta().norm()
    assert float(error) == pytest.approx(lost, rel=1e-4)
    assert reduced(change, 6) == (change, 0.0)


def test_a_whole_change_is_reduced_and_the_same_each_time() -> None:
    torch.manual_seed(0)
    delta = torch.randn(40, 5) @ torch.randn(5, 30) + 0.01 * torch.randn(40, 30)
    made, lost = low_rank_of(delta, 5)
    assert lost == pytest.approx(best(delta, 5), rel=0.01)
    state = torch.random.get_rng_state()
    again, _ = low_rank_of(delta, 5)
    assert torch.equal(made.up_OR, again.up_OR)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_is_lost_of_nothing() -> None:
    made, lost = low_rank_of(torch.zeros(4, 4), 2)
    assert lost == 0.0
    assert made.delta().eq(0).all()
