import json
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from flux_engine.errors import SettingError
from flux_engine.training.optimizer import make_optimizer, restore_state, state_of


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        "a.down": nn.Parameter(torch.randn(64, 128).to(dtype)),
        "a.up": nn.Parameter(torch.randn(8).to(dtype)),
    }


def made(kind: str, held: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    rate = 1.0 if kind == "prodigy" else 1e-3
    return make_optimizer(kind, held, rate=rate, weight_decay=0.01)


def descend(optimizer: torch.optim.Optimizer, held: Mapping[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in held.values():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = drawn.to(parameter.dtype)
    optimizer.step()


KINDS = ["adamw", "prodigy", "adamw8bit", "torch.optim.Adafactor", "torch.optim.SGD"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_went_through_a_file_goes_on_with_the_same_bits(
    kind: str, dtype: torch.dtype
) -> None:
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    straight, resumed = parameters(dtype), parameters(dtype)
    one = made(kind, straight)
    for step in range(4):
        descend(one, straight, step)
    first = made(kind, resumed)
    for step in range(2):
        descend(first, resumed, step)
    tensors, told = state_of(first, resumed)
    second = made(kind, resumed)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    restore_state(second, resumed, kept, json.loads(json.dumps(told)))
    for step in range(2, 4):
        descend(second, resumed, step)
    for name in straight:
        assert torch.equal(straight[name], resumed[name])


def test_what_an_optimizer_does_not_take_is_named_with_what_it_takes() -> None:
    with pytest.raises(SettingError, match=r"does not take beta; it takes .*betas"):
        make_optimizer("adamw", parameters(), rate=1e-3, weight_decay=0.0, options={"beta": 0.9})


def test_lists_from_a_file_are_tuples_for_the_optimizer() -> None:
    options = {"betas": [0.9, 0.99]}
    made = make_optimizer("adamw", parameters(), rate=1e-3, weight_decay=0.0, options=options)
    assert made.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("adam", "known are adamw, adamw8bit, prodigy, or the dotted path"),
        ("torch.optim.Nothing", "there is no Nothing in torch.optim"),
        ("no.such.Thing", "cannot be imported"),
        ("collections.OrderedDict", "optimizer collections.OrderedDict"),
    ],
)
def test_a_class_that_is_no_optimizer_is_refused(kind: str, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        make_optimizer(kind, parameters(), rate=1e-3, weight_decay=0.0)
