"""Which kernels the transformer runs on: attention's back end, and blocks compiled by kind.

Another kernel is other last bits: a choice belongs to an output, as batch shapes do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxTransformer

Attention = Literal["default", "measured", "flash", "cudnn", "efficient", "math"]

BACK_ENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
ON_A_CPU = ("flash", "math")
TRIES = 5
SHAPES = 64  # kinds of block times shapes that are compiled before it is an error


@contextmanager
def attention(name: str) -> Iterator[None]:
    """Inside, attention runs on this back end, or the call that cannot fails."""
    if name == "default":
        yield
        return
    with sdpa_kernel(BACK_ENDS[name]):
        yield


def check_attention(name: Attention, device: torch.device) -> None:
    if device.type == "cpu" and name in BACK_ENDS and name not in ON_A_CPU:
        raise SettingError(f"attention is {name}; allowed on a CPU: default, {', '.join(ON_A_CPU)}")


def fastest_attention(
    shape_BHLE: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """The GPU's quickest back end for this shape; the default one elsewhere."""
    if device.type != "cuda":
        return "default"
    q = torch.randn(shape_BHLE, dtype=dtype, device=device)
    took = {}
    for name in ("flash", "cudnn", "efficient"):
        try:
            with attention(name), torch.cuda.device(device):  # whose stream is timed
                took[name] = _seconds(q)
        except RuntimeError:  # not for this card, type or shape
            continue
    return min(took, key=lambda name: took[name]) if took else "default"


def _seconds(q: torch.Tensor) -> float:
    scaled_dot_product_attention(q, q, q)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(TRIES):
        scaled_dot_product_attention(q, q, q)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def compile_blocks(dit: FluxTransformer, backend: Any = "inductor") -> None:
    """Each kind of block is compiled once for each shape, and serves all blocks of its kind.

    Only a block's own computing: what brings its weights runs before and after, as it does without.
    """
    dynamo = torch._dynamo.config
    # hooks that come later, as adapters' do, have to be seen; running out of shapes has to be told
    dynamo.skip_nnmodule_hook_guards = False
    dynamo.recompile_limit = SHAPES
    dynamo.fail_on_recompile_limit_hit = True
    blocks: list[nn.Module] = [*dit.double_blocks, *dit.single_blocks]
    for block in blocks:
        compiled = torch.compile(block.forward, dynamic=False, fullgraph=True, backend=backend)
        block.forward = compiled
