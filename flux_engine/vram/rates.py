"""What a card does in a second: of cards by name as far as is known, of the one here measured."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from flux_engine.vram.card import CudaCard
from flux_engine.vram.estimates import GIB, Machine

# bytes, link, bfloat16 products and attention; for plans on a machine without the card. Products:
# what large ones reach, not what the maker says
KNOWN = {
    card.name: card
    for card in (
        Machine(name="H200", memory=139 * GIB, link=50e9, matmul=790e12, attention=600e12),
        Machine(name="H100", memory=79 * GIB, link=50e9, matmul=690e12, attention=550e12),
        Machine(name="A100", memory=79 * GIB, link=25e9, matmul=263e12, attention=220e12),
        Machine(name="L40S", memory=44 * GIB, link=25e9, matmul=240e12, attention=180e12),
        Machine(name="RTX 4090", memory=23 * GIB, link=25e9, matmul=150e12, attention=120e12),
        Machine(name="RTX 4060", memory=7 * GIB, link=12.5e9, matmul=28e12, attention=22e12),
    )
}
TRIES = 5
LINK_BYTES = 2**26
ROWS, WIDTH, WIDE, HEADS, HEAD = 4608, 3072, 12288, 24, 128  # of FLUX.1 at 1024²


def measured(card: CudaCard, dtype: torch.dtype, memory: int) -> Machine:
    """The card here: a tenth of a second's copies, products and attention at FLUX.1's widths."""
    with torch.cuda.device(card.device):  # whose streams are timed
        return _measured(card, dtype, memory)


def _measured(card: CudaCard, dtype: torch.dtype, memory: int) -> Machine:
    device = card.device
    source = torch.zeros(LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    target = card.room(LINK_BYTES)
    x = torch.randn(ROWS, WIDTH, device=device, dtype=dtype)
    weight = torch.randn(WIDE, WIDTH, device=device, dtype=dtype)
    q = torch.randn(1, HEADS, ROWS, HEAD, device=device, dtype=dtype)
    return Machine(
        name=torch.cuda.get_device_name(device),
        memory=memory,
        link=LINK_BYTES / seconds(lambda: target.copy_(source, non_blocking=True)),
        matmul=2.0 * ROWS * WIDTH * WIDE / seconds(lambda: F.linear(x, weight)),
        attention=4.0
        * HEADS
        * HEAD
        * ROWS**2
        / seconds(lambda: F.scaled_dot_product_attention(q, q, q)),
    )


def seconds(work: Callable[[], object]) -> float:
    """Of one call on the current GPU: the median of some, after a first one."""
    work()
    marks = [_timed_mark() for _ in range(TRIES + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    marks[-1].synchronize()
    took: list[float] = sorted(one.elapsed_time(next_) / 1e3 for one, next_ in pairwise(marks))
    return took[len(took) // 2]


def _timed_mark() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
