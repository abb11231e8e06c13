from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from flux_engine.errors import SettingError
from flux_engine.latents import pack, position_ids, unpack
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.fp8 import narrow_in, narrow_layers, widened
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.net import Checkpointing, Net, narrow_base
from flux_engine.training.sft import Sft
from tests.flux_engine.training.rows import TEXT, batch, draws, row, transformer


class Everything:
    """All weights are trained."""

    def __init__(self, dit: FluxTransformer) -> None:
        dit.requires_grad_(requires_grad=True)
        self.trainable: Mapping[str, nn.Parameter] = dict(dit.named_parameters())

    @contextmanager
    def off(self) -> Iterator[None]:
        yield


def net(checkpointing: Checkpointing = "none", compute: torch.dtype = torch.float32) -> Net:
    dit = transformer()
    return Net(dit, Everything(dit), compute=compute, checkpointing=checkpointing)


def samples() -> tuple[Tensor, ...]:
    one = batch(*(Sft(guidance=3.5).draw(row(i), draws(i)) for i in range(2)))
    return one["x"], one["told"], one["t5"], one["pooled"], one["guidance"]


def gradients(of: Net) -> tuple[Tensor, dict[str, Tensor]]:
    velocity = of(*samples())
    velocity.square().mean().backward()  # type: ignore[no-untyped-call]
    return velocity.detach(), {
        name: p.grad.clone() for name, p in of.trainable.items() if p.grad is not None
    }


def test_it_answers_as_the_transformer_does() -> None:
    made = net()
    x, sigma, t5, pooled, guidance = samples()
    dit = transformer()
    rows = dit.modulate(dit.condition(sigma, pooled, guidance))
    packed = dit(pack(x), t5, rows, dit.rotation(position_ids(TEXT, 4, 6)))
    torch.testing.assert_close(made(x, sigma, t5, pooled, guidance), unpack(packed, 4, 6))


def test_every_weight_has_a_gradient() -> None:
    made = net()
    _, grads = gradients(made)
    assert set(grads) == set(made.trainable)
    assert all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("checkpointing", ["blocks", "offload"])
def test_computing_blocks_again_changes_no_bit(
    checkpointing: Checkpointing, compute: torch.dtype
) -> None:
    kept, again = (gradients(net(way, compute)) for way in ("none", checkpointing))  # type: ignore[arg-type]
    assert torch.equal(kept[0], again[0])
    assert set(kept[1]) == set(again[1])
    assert all(torch.equal(kept[1][name], again[1][name]) for name in kept[1])


def saved_bytes(of: Net) -> int:
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = of(*samples())
    assert answer.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in of.dit.parameters()}
    return sum(size for place, size in seen.items() if place not in weights)


def test_checkpointed_blocks_keep_little() -> None:
    assert saved_bytes(net("blocks")) < saved_bytes(net()) / 4


def test_wide_weights_compute_in_bfloat16_and_learn_in_float32() -> None:
    exact, made = net(), net(compute=torch.bfloat16)
    (velocity, grads), (rounded, narrow) = gradients(exact), gradients(made)
    assert made.autocast
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, velocity)
    assert (rounded - velocity).norm() / velocity.norm() < 0.03
    assert all(grad.dtype == torch.float32 for grad in narrow.values())
    errors = {n: float((narrow[n] - grads[n]).norm() / grads[n].norm()) for n in grads}
    assert sorted(errors.values())[len(errors) // 2] < 0.05


def test_narrow_weights_compute_as_they_are() -> None:
    dit = transformer().bfloat16()
    made = Net(dit, Everything(dit), compute=torch.bfloat16)
    assert not made.autocast
    assert made(*samples()).dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "compute"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)],
    ids=str,
)
def test_a_precision_that_cannot_be_had_is_refused(
    weights: torch.dtype, compute: torch.dtype
) -> None:
    dit = transformer().to(weights)
    with pytest.raises(SettingError, match="compute is torch"):
        Net(dit, Everything(dit), compute=compute)


def test_a_bare_answer_has_no_gradient() -> None:
    assert not net().bare(*samples()).requires_grad
    assert not net("blocks").bare(*samples()).requires_grad


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_base_of_eight_bits_teaches_what_its_widened_weights_would(
    dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    narrow, wide = transformer().to(dtype), transformer().to(dtype)
    narrow_base(narrow)
    for name, layer in narrow_in(narrow):
        wide.get_submodule(name).weight.data = widened(layer.weight, layer.weight_scale, dtype)  # type: ignore[union-attr]
    assert {name for name, _ in narrow_in(narrow)} >= {"double_blocks.0.img_attn.qkv"}
    made, expected = (
        gradients(
            Net(
                dit,
                TrainedLora(dit, LoraShape(rank=4)),
                compute=dtype,
                checkpointing=checkpointing,
            )
        )
        for dit in (narrow, wide)
    )
    assert torch.equal(made[0], expected[0])
    assert len(made[1]) == len(expected[1]) > 20
    assert all(torch.equal(made[1][name], expected[1][name]) for name in expected[1])


def test_products_of_eight_bits_are_refused() -> None:
    dit = transformer()
    narrow_layers(dit.single_blocks, products=True)
    with pytest.raises(SettingError, match="products of eight bits have no gradient"):
        Net(dit, TrainedLora(dit, LoraShape(rank=1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16], ids=str)
def test_a_card_computes_blocks_again_to_the_same_bits(
    masters: torch.dtype, compute: torch.dtype
) -> None:
    if masters == torch.bfloat16 and compute == torch.float32:
        pytest.skip("refused")
    found = []
    for way in ("none", "blocks", "offload"):
        dit = transformer().to(masters).cuda()
        net = Net(dit, Everything(dit), compute=compute, checkpointing=way)  # type: ignore[arg-type]
        net(*(tensor.cuda() for tensor in samples())).square().mean().backward()
        found.append({name: p.grad for name, p in net.trainable.items()})
    for again in found[1:]:
        assert all(torch.equal(again[n], found[0][n]) for n in again)  # type: ignore[arg-type]
    assert all(grad is not None and grad.dtype == masters for grad in found[0].values())
