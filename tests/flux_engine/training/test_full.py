import pytest
import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.models.fp8 import narrow_layers
from flux_engine.training.full import TrainedWeights
from flux_engine.training.net import Net
from tests.flux_engine.training.rows import transformer
from tests.flux_engine.training.test_lora import samples


def step(net: Net) -> None:
    """Far enough that the answer is another."""
    net(*samples()).square().mean().backward()
    for parameter in net.trainable.values():
        assert parameter.grad is not None
        parameter.data += 0.05 * parameter.grad.sign()
        parameter.grad = None


@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_were_read_in_bfloat16_learn_in_the_type_asked_for(
    master: torch.dtype,
) -> None:
    dit = transformer().bfloat16()
    before = {name: p.detach().clone() for name, p in dit.named_parameters()}
    trained = TrainedWeights(dit, master_dtype=master)
    net = Net(dit, trained, compute=torch.bfloat16)
    assert net.autocast == (master == torch.float32)
    assert set(net.trainable) == set(before)
    step(net)
    after = trained.weights()
    assert all(after[name].dtype == master for name in after)
    assert all(not torch.equal(after[name].bfloat16(), before[name]) for name in after)


def test_what_no_pattern_names_is_frozen_as_it_is() -> None:
    dit = transformer().bfloat16()
    before = {name: p.detach().clone() for name, p in dit.named_parameters()}
    trained = TrainedWeights(dit, ["img_in", "double_blocks.1.*", "*.linear1.weight"])
    assert set(trained.trainable) == {
        name
        for name in before
        if name.startswith(("img_in.", "double_blocks.1.")) or name.endswith("linear1.weight")
    }
    step(Net(dit, trained, compute=torch.bfloat16))
    for name, weight in trained.weights().items():
        assert (name in trained.trainable) == (weight.dtype == torch.float32)
        assert (name in trained.trainable) != torch.equal(weight.bfloat16(), before[name])


def test_patterns_that_name_nothing_are_refused() -> None:
    with pytest.raises(SettingError, match=r"'double_block\.\*' names no weight"):
        TrainedWeights(transformer(), ["img_in", "double_block.*"])
    with pytest.raises(SettingError, match="no weights to train are named"):
        TrainedWeights(transformer(), [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_base_can_be_asked_though_its_weights_have_moved(dtype: torch.dtype) -> None:
    dit = transformer().to(dtype)
    net = Net(dit, TrainedWeights(dit, keep_base=True), compute=dtype)
    first, bare = net(*samples()).detach(), net.bare(*samples())
    step(net)
    moved = net(*samples()).detach()
    assert torch.equal(net.bare(*samples()), bare)
    assert torch.equal(net(*samples()), moved)
    assert (moved - first).abs().max() > 1e-2


def test_a_base_that_was_not_kept_is_told() -> None:
    dit = transformer()
    with pytest.raises(SettingError, match="keep_base keeps them"):
        Net(dit, TrainedWeights(dit)).bare(*samples())


def test_an_average_stands_in_for_what_was_trained() -> None:
    dit = transformer()
    trained = TrainedWeights(dit, ["img_in.weight"])
    average: dict[str, Tensor] = {"img_in.weight": torch.zeros(64, 64)}
    weights = trained.weights(average)
    assert not weights["img_in.weight"].any()
    assert torch.equal(weights["img_in.bias"], dit.img_in.bias)


def test_weights_of_eight_bits_are_not_trained() -> None:
    dit = transformer()
    narrow_layers(dit.single_blocks)
    with pytest.raises(SettingError, match="can only be frozen"):
        TrainedWeights(dit)
