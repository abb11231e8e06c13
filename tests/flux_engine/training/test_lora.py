from pathlib import Path

import pytest
import torch
from torch import Tensor

from flux_engine import load_engine
from flux_engine.errors import CheckpointError, SettingError
from flux_engine.request import LoraUse
from flux_engine.teacher import Answer, Query, Teacher
from flux_engine.training.base import load_base
from flux_engine.training.lora import LoraShape, TrainedLora
from flux_engine.training.net import Net
from flux_engine.training.sft import Sft
from flux_engine.weights.lora.changes import LowRank
from flux_engine.weights.lora.file import Lora, full_delta
from flux_engine.weights.lora.layouts import LayoutName
from flux_engine.weights.lora.names import Sizes
from flux_engine.weights.lora.read import read_lora
from flux_engine.weights.lora.write import write_lora
from tests.flux_engine.training.rows import TINY, batch, draws, row, transformer

LAYOUTS: tuple[LayoutName, ...] = ("diffusers", "kohya", "peft", "diffsynth", "bfl")


def learned(shape: LoraShape, seed: int = 0) -> TrainedLora:
    """Whose up factors are no longer zero."""
    lora = TrainedLora(transformer(), shape, seed=seed)
    with torch.no_grad():
        for i, (name, factor) in enumerate(lora.trainable.items()):
            if name.endswith("lora_B"):
                factor.copy_(0.1 * torch.randn(factor.shape, generator=draws(i)))
    return lora


def deltas(lora: Lora) -> dict[str, Tensor]:
    out = {}
    for (_, layer, _), parts in lora.targets.items():
        rows = transformer().get_submodule(layer).weight
        assert isinstance(rows, Tensor)
        out[layer] = full_delta(parts, torch.zeros_like(rows))
    return out


def samples() -> tuple[Tensor, ...]:
    one = batch(*(Sft(guidance=3.5).draw(row(i), draws(i)) for i in range(2)))
    return one["x"], one["told"], one["t5"], one["pooled"], one["guidance"]


def test_nothing_has_changed_before_the_first_step() -> None:
    dit = transformer()
    plain = Net(dit, TrainedLora(transformer(), LoraShape()))(*samples())
    lora = TrainedLora(dit, LoraShape(rank=4))
    assert torch.equal(Net(dit, lora)(*samples()), plain)


def test_factors_are_drawn_from_the_seed_and_the_layers_name() -> None:
    everything = TrainedLora(transformer(), LoraShape(rank=4), seed=3).trainable
    few = TrainedLora(transformer(), LoraShape(rank=4, targets=["linear1"]), seed=3).trainable
    other = TrainedLora(transformer(), LoraShape(rank=4), seed=4).trainable
    assert set(few) < set(everything)
    assert all(torch.equal(few[name], everything[name]) for name in few)
    a = "single_blocks.1.linear1.lora_A"
    assert not torch.equal(everything[a], other[a])
    assert not torch.equal(everything[a], everything["single_blocks.0.linear1.lora_A"])
    assert everything[a].abs().max() <= 1 / TINY.width**0.5
    assert everything[a].abs().max() > 0.9 / TINY.width**0.5
    assert all(p.dtype == torch.float32 for p in everything.values())


def test_a_trained_layer_says_what_the_merged_weight_would() -> None:
    shape = LoraShape(rank=4, alpha=8.0, targets=["all+globals"], ranks={"linear1": 2})
    dit = transformer()
    lora = TrainedLora(dit, shape)
    for name, factor in learned(shape).trainable.items():
        lora.trainable[name].data.copy_(factor)
    made = Net(dit, lora)(*samples())
    merged = transformer()
    for layer, delta in deltas(lora.lora()).items():
        merged.get_submodule(layer).weight.data += delta  # type: ignore[operator, union-attr]
    expected = Net(merged, TrainedLora(transformer(), LoraShape()))(*samples())
    bare = Net(dit, lora).bare(*samples())
    assert (made - bare).abs().max() > 0.05
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


def test_off_is_the_base_to_the_last_bit() -> None:
    dit = transformer()
    plain = dit.double_blocks[0].img_attn.proj(torch.ones(1, 1, 64))  # type: ignore[operator, union-attr]
    lora = TrainedLora(dit, LoraShape(rank=4))
    for factor in lora.trainable.values():
        factor.data.fill_(0.3)
    layer = dit.double_blocks[0].img_attn.proj  # type: ignore[union-attr]
    assert not torch.equal(layer(torch.ones(1, 1, 64)), plain)  # type: ignore[operator]
    with lora.off(), lora.off():
        assert torch.equal(layer(torch.ones(1, 1, 64)), plain)  # type: ignore[operator]
    assert not torch.equal(layer(torch.ones(1, 1, 64)), plain)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_factors_learn_and_in_float32(dtype: torch.dtype) -> None:
    dit = transformer().to(dtype)
    lora = TrainedLora(dit, LoraShape(rank=4))
    net = Net(dit, lora, compute=dtype)
    net(*samples()).square().mean().backward()
    ups = [p for name, p in net.trainable.items() if name.endswith("lora_B")]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ups)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ups)
    assert all(p.grad is None for p in dit.parameters())


def test_a_checkpointed_block_gives_the_same_gradients() -> None:
    grads = []
    for way in ("none", "blocks", "offload"):
        dit = transformer()
        net = Net(dit, TrainedLora(dit, LoraShape(rank=4)), checkpointing=way)  # type: ignore[arg-type]
        net(*samples()).square().mean().backward()
        grads.append({name: p.grad for name, p in net.trainable.items()})
    for again in grads[1:]:
        assert all(torch.equal(again[name], grads[0][name]) for name in again)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_says_what_was_trained_and_can_be_gone_on_from(
    layout: LayoutName, tmp_path: Path
) -> None:
    shape = LoraShape(rank=4, alpha=2.0, ranks={"linear1": 3}, alphas={"img_attn.qkv": 7.0})
    trained = learned(shape)
    to = tmp_path if layout == "peft" else tmp_path / "lora.safetensors"
    file = write_lora(trained.lora(), to, layout).files[0]
    again = read_lora(file, Sizes(TINY))
    wanted, read = deltas(trained.lora()), deltas(again)
    assert set(wanted) == set(read)
    for layer, delta in wanted.items():
        assert (read[layer] - delta).norm() <= 1e-6 * delta.norm()
    resumed = TrainedLora(transformer(), shape, seed=9)
    assert resumed.load(again) == ()
    for layer, delta in deltas(resumed.lora()).items():
        assert (delta - wanted[layer]).norm() <= 1e-6 * delta.norm()


def test_an_average_of_what_was_trained_can_be_written() -> None:
    trained = learned(LoraShape(rank=4))
    half = {name: 0.5 * factor for name, factor in trained.trainable.items()}
    whole, quarter = deltas(trained.lora()), deltas(trained.lora(half))
    assert all(torch.allclose(quarter[layer], 0.25 * whole[layer], atol=1e-7) for layer in whole)


def test_a_smaller_rank_fits_and_leaves_room_to_learn() -> None:
    small, large = learned(LoraShape(rank=2)), TrainedLora(transformer(), LoraShape(rank=6))
    large.load(small.lora())
    wanted = deltas(small.lora())
    for layer, delta in deltas(large.lora()).items():
        torch.testing.assert_close(delta, wanted[layer])
    beyond = large.trainable["single_blocks.0.linear1.lora_A"][2:]
    assert beyond.abs().min() > 0


def test_layers_that_a_file_does_not_have_start_afresh_and_are_told() -> None:
    few = learned(LoraShape(rank=4, targets=["img_attn.qkv"]))
    more = TrainedLora(transformer(), LoraShape(rank=4, targets=["img_attn.*"]))
    assert more.load(few.lora()) == (
        "double_blocks.0.img_attn.proj",
        "double_blocks.1.img_attn.proj",
    )


def test_nothing_of_a_file_is_left_unused() -> None:
    more = learned(LoraShape(rank=4, targets=["img_attn.*"])).lora(where="other.safetensors")
    few = TrainedLora(transformer(), LoraShape(rank=4, targets=["img_attn.qkv"]))
    before = {name: factor.detach().clone() for name, factor in few.trainable.items()}
    with pytest.raises(CheckpointError, match=r"other.safetensors: .*img_attn.proj \(not trained"):
        few.load(more)
    assert all(torch.equal(before[name], factor) for name, factor in few.trainable.items())


def test_a_rank_above_the_trained_one_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has rank 4, trained is 3"):
        TrainedLora(transformer(), LoraShape(rank=3)).load(learned(LoraShape(rank=4)).lora())


def test_alpha_is_the_rank_unless_it_is_told() -> None:
    shape = LoraShape(
        rank=4, ranks={"linear1": 8}, alphas={"single_blocks.0.*": 1.0}, targets=["linear?"]
    )
    told = shape.of(TINY)
    assert told["single_blocks.0.linear1"] == (8, 1.0)
    assert told["single_blocks.1.linear1"] == (8, 8.0)
    assert told["single_blocks.1.linear2"] == (4, 4.0)
    (first, *_) = TrainedLora(transformer(), shape).lora().parts
    assert isinstance(first.change, LowRank)
    assert (first.change.rank, first.change.alpha) == (8, 1.0)


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match="rank is 0"):
        LoraShape(rank=0).of(TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_learned(dtype: torch.dtype) -> None:
    dit = transformer().to(dtype)
    lora = TrainedLora(dit, LoraShape(rank=8, targets=["all+globals"]))
    net = Net(dit, lora, compute=dtype, checkpointing="blocks")
    objective, one = Sft(), batch(Sft().draw(row(), draws()))
    optimizer = torch.optim.AdamW(net.trainable.values(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective.loss(net, one).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad(), lora.off():
        assert objective.loss(net, one).item() == pytest.approx(losses[0], rel=1e-2)


def test_the_engine_says_with_the_file_what_was_said_in_training(tmp_path: Path) -> None:
    engine = load_engine("flux-shapes", torch_dtype=torch.float32, device="cpu", micro_batch=2)
    base = load_base("flux-shapes", dtype=torch.float32)
    lora = TrainedLora(base.dit, LoraShape(rank=4, targets=["all+globals"]))
    for i, (name, factor) in enumerate(lora.trainable.items()):
        if name.endswith("lora_B"):
            factor.data.copy_(0.05 * torch.randn(factor.shape, generator=draws(i)))
    file = write_lora(lora.lora(), tmp_path / "lora.safetensors").files[0]
    prompts, states = ("a red circle", ""), torch.randn(2, 16, 8, 8, generator=draws())
    queries = [
        Query(
            state=state, sigma=sigma, prompt=prompt, embedded_guidance=2.5, t5_sequence_length=20,
            loras=(LoraUse(path=str(file)),),
        )
        for state, sigma, prompt in zip(states, (0.9, 0.3), prompts, strict=True)
    ]  # fmt: skip
    answers = dict(Teacher(engine).each(queries))
    texts = engine.text([(prompt, 20) for prompt in prompts])
    told = [texts[prompt, 20] for prompt in prompts]
    net = Net(base.dit, lora)
    velocity = net(
        states,
        torch.tensor([0.9, 0.3]),
        torch.stack([text.states_TW for text in told]),
        torch.stack([text.pooled_P for text in told]),
        torch.full((2,), 2.5),
    )
    for i in range(2):
        answer = answers[i]
        assert isinstance(answer, Answer)
        torch.testing.assert_close(velocity[i].detach(), answer.velocity, atol=2e-5, rtol=1e-4)
