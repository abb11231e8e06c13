"""Against peft's own layers, which know nothing of our formulas."""

import peft
import pytest
import torch
from torch import Tensor, nn

from flux_engine.weights.lora.changes import (
    Hadamard,
    Kronecker,
    LowRank,
    decomposed,
    gather,
    scatter,
    stacked,
)

ROWS, COLUMNS, RANK = 24, 16, 4


class One(nn.Module):
    """A model of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def wrapped(config: peft.PeftConfig) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A model with random factors, its adapter's tensors by their leaf, and the base weight."""
    torch.manual_seed(0)
    one = One()
    base = one.layer.weight.detach().clone()
    model = peft.get_peft_model(one, config)
    for name, parameter in model.named_parameters():
        if "base_layer" not in name:
            nn.init.uniform_(parameter, 0.2, 0.9)
    state = peft.get_peft_model_state_dict(model)
    leaves = {key.split("layer.", 1)[1].removesuffix(".weight"): t for key, t in state.items()}
    return model, leaves, base


def merged_change(model: nn.Module, base: Tensor) -> Tensor:
    merged = model.merge_and_unload()  # type: ignore[operator]
    change: Tensor = merged.layer.weight.detach() - base
    return change


@pytest.mark.parametrize("dora", [False, True])
def test_low_rank_and_dora_are_pefts(dora: bool) -> None:
    config = peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=["layer"], use_dora=dora)
    model, leaves, base = wrapped(config)
    delta = LowRank(leaves["lora_A"], leaves["lora_B"], 6.0).delta()
    if dora:
        delta = decomposed(base, delta, leaves["lora_magnitude_vector"][:, None])
    torch.testing.assert_close(delta, merged_change(model, base), rtol=1e-5, atol=1e-6)


def test_hadamard_is_pefts() -> None:
    model, f, base = wrapped(peft.LoHaConfig(r=RANK, alpha=6, target_modules=["layer"]))
    made = Hadamard(f["hada_w1_a"], f["hada_w1_b"], f["hada_w2_a"], f["hada_w2_b"], 6.0)
    torch.testing.assert_close(made.delta(), merged_change(model, base), rtol=1e-5, atol=1e-6)
    assert made.shape == (ROWS, COLUMNS)
    assert made.norm() == pytest.approx(float(made.delta().norm()))


@pytest.mark.parametrize("both", [False, True])
def test_kronecker_is_pefts(both: bool) -> None:
    config = peft.LoKrConfig(
        r=1, alpha=6, target_modules=["layer"], decompose_both=both, decompose_factor=4
    )
    model, f, base = wrapped(config)
    w1, w2 = (
        (f[f"lokr_{w}"],) if f"lokr_{w}" in f else (f[f"lokr_{w}_a"], f[f"lokr_{w}_b"])
        for w in ("w1", "w2")
    )
    assert len(w1) == 1 + both
    made = Kronecker(w1, w2, 6.0)
    torch.testing.assert_close(made.delta(), merged_change(model, base), rtol=1e-5, atol=1e-5)
    assert made.shape == (ROWS, COLUMNS)
    assert made.norm() == pytest.approx(float(made.delta().norm()), rel=1e-5)


def test_dora_of_columns_brings_columns_to_their_magnitude() -> None:
    torch.manual_seed(0)
    base, delta, magnitude = torch.randn(5, 3), torch.randn(5, 3), torch.rand(1, 3) + 0.5
    changed = base + decomposed(base, delta, magnitude)
    torch.testing.assert_close(changed.norm(dim=0, keepdim=True), magnitude)


def test_the_norm_of_a_low_rank_change_needs_no_change() -> None:
    torch.manual_seed(0)
    change = LowRank(torch.randn(3, 7), torch.randn(9, 3), -2.0)
    assert change.norm() == pytest.approx(float(change.delta().norm()), rel=1e-6)


def test_stacked_changes_are_their_sum_in_place() -> None:
    torch.manual_seed(0)
    one = LowRank(torch.randn(2, 4), torch.randn(3, 2), 1.0)
    other = LowRank(torch.randn(3, 4), torch.randn(4, 3), 5.0)
    made = stacked([(one, [(0, 3)]), (other, [(6, 8), (3, 5)])], 8)
    wanted = torch.zeros(8, 4)
    wanted[0:3] = one.delta()
    wanted[6:8], wanted[3:5] = other.delta()[:2], other.delta()[2:]
    torch.testing.assert_close(made.delta(), wanted)
    assert made.rank == made.alpha == 5


def test_gather_undoes_scatter() -> None:
    part, ranges = torch.arange(8.0).reshape(4, 2), [(4, 6), (0, 2)]
    whole = torch.zeros(6, 2)
    scatter(whole, part, ranges)
    assert torch.equal(gather(whole, ranges), part)
    assert whole[2:4].eq(0).all()
