from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from flux_engine import SettingError
from flux_engine.sampling.kernels import (
    attention,
    check_attention,
    compile_blocks,
    fastest_attention,
)
from tests.flux_engine.vram.streaming import narrow_dit, rooms, run, small_dit, staged

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    config = {name: getattr(torch._dynamo.config, name) for name in (
        "skip_nnmodule_hook_guards", "recompile_limit", "fail_on_recompile_limit_hit")}  # fmt: skip
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    for name, value in config.items():
        setattr(torch._dynamo.config, name, value)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_back_ends_agree_to_rounding() -> None:
    plain = run(small_dit())
    for name in ("default", "math", "flash"):
        with attention(name):
            made = run(small_dit())
        for one, other in zip(made, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_back_end_that_a_cpu_has_not_is_refused_by_name() -> None:
    check_attention("default", CPU)
    check_attention("math", CPU)
    with pytest.raises(SettingError, match="attention is cudnn; allowed on a CPU: default, flash"):
        check_attention("cudnn", CPU)
    assert fastest_attention((1, 2, 8, 16), torch.float32, CPU) == "default"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fastest_back_end_is_one_that_runs() -> None:
    device = torch.device("cuda")
    name = fastest_attention((1, 24, 4608, 128), torch.bfloat16, device)
    q = torch.randn(1, 24, 256, 128, dtype=torch.bfloat16, device=device)
    with attention(name):
        assert torch.nn.functional.scaled_dot_product_attention(q, q, q).isfinite().all()


@pytest.mark.parametrize("make", [small_dit, narrow_dit])
def test_each_kind_of_block_is_compiled_once_however_its_weights_are_held(make: object) -> None:
    expected = run(make())  # type: ignore[operator]
    room, _ = rooms(dit := make())  # type: ignore[operator]
    counter = CompileCounter()
    compile_blocks(dit, counter)
    for kept in (frozenset[str](), frozenset({"double_blocks.1", "single_blocks.2"})):
        with room.phase(staged(kept, 2)):
            assert same(run(dit, room), expected)
    assert counter.frame_count == 2


def test_a_hook_that_comes_after_compiling_is_seen_and_goes_again() -> None:
    dit = small_dit()
    compile_blocks(dit, "eager")
    before = run(dit)
    layer = dit.single_blocks[1].linear2
    hook = layer.register_forward_hook(lambda _module, _inputs, out: out + 1)
    plain = small_dit()
    plain.single_blocks[1].linear2.register_forward_hook(lambda _module, _inputs, out: out + 1)
    assert same(run(dit), run(plain))
    hook.remove()
    assert same(run(dit), before)
