import pytest
import torch

from flux_engine import Generation, load_engine
from flux_engine.sampling.stepcache import CachedTransformer, reused
from tests.flux_engine.asking import asked
from tests.flux_engine.vram.streaming import small_dit


def test_every_second_step_of_the_middle_is_reused_and_never_two_in_a_row() -> None:
    assert reused(4) == reused(5) == frozenset()
    assert sorted(reused(8)) == [3, 5]
    assert sorted(reused(28)) == list(range(3, 26, 2))
    for steps in range(1, 60):
        assert not {0, 1, 2, steps - 1, steps - 2} & reused(steps)
        assert all(n - 1 not in reused(steps) for n in reused(steps))


@torch.inference_mode()
def test_a_computed_step_is_the_transformers_and_a_reused_one_adds_the_same_change() -> None:
    dit = small_dit()
    x, text, rows = torch.randn(2, 12, 16), torch.randn(2, 5, 24), torch.randn(2, 50, 64)
    rotation = dit.rotation(torch.zeros(17, 3, dtype=torch.int64))
    cached = CachedTransformer(dit)
    computed = cached(x, text, rows, rotation, reuse=True)  # nothing is there to be reused
    assert torch.equal(computed, dit(x, text, rows, rotation))
    again = cached(x, text, rows, rotation, reuse=True)
    torch.testing.assert_close(again, computed)
    assert not torch.equal(cached(x + 1, text, rows, rotation, reuse=True), computed)


def test_both_sides_of_guidance_and_all_rows_reuse_the_same_steps() -> None:
    engine = load_engine(
        device="cpu", torch_dtype=torch.float32, micro_batch=2, approximate=["step_cache"]
    )
    calls: list[int] = []
    block = engine.dit.single_blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    engine.deviation.due = False
    rows = [asked(f"row {i}", i, cfg_scale=2.0, num_inference_steps=8) for i in range(3)]
    whole = engine.generate(rows)
    assert calls == [4] * 6 * 2  # two of eight steps do without
    for row, one in zip(rows, whole, strict=True):
        (alone,) = engine.generate([row])
        assert isinstance(alone, Generation)
        assert torch.equal(alone.latents, one.latents)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_few_steps_are_exact(scale: float) -> None:
    rows = [asked("a", 1, cfg_scale=scale, num_inference_steps=4)]
    exact = load_engine(device="cpu", torch_dtype=torch.float32).generate(rows)
    cached = load_engine(device="cpu", torch_dtype=torch.float32, approximate=["step_cache"])
    made = cached.generate(rows)
    assert torch.equal(made[0].latents, exact[0].latents)
    assert made[0].approximate == "step_cache"
