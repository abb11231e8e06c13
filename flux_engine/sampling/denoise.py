"""The loop: noise and text into latents, one velocity a step.

Shape letters: B batch, S image tokens, T text tokens, C patch channels, P pooled width,
W text width, N steps, M modulation vectors, D hidden width, G = B, or 2 B with guidance by a
negative prompt (the prompts first, then the negative ones).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flux_engine.models.dit import FluxTransformer
from flux_engine.sampling.stepcache import CachedTransformer
from flux_engine.sampling.trace import Record, nothing

Progress = Callable[[Iterable[int]], Iterable[int]]

STEPS_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a micro-batch is told at every step, on the transformer's device.

    `beside` is entered whenever the transformer computes for these rows: it lets something act
    beside its weights.
    """

    text_GTW: Tensor
    pooled_GP: Tensor
    guidance_G: Tensor
    cfg_B: Tensor | None  # None: no negative side, G = B
    beside: Callable[[], AbstractContextManager[None]] = nullcontext


class Modulated(Protocol):
    """A part of a model with rows in the table."""

    def modulate(self, c_BD: Tensor) -> Tensor: ...


class Hoisted(Modulated, Protocol):
    """A model whose modulation is evaluated before the loop: a transformer, or a control trunk."""

    def condition(self, sigma_B: Tensor, pooled_BP: Tensor, guidance_B: Tensor) -> Tensor: ...

    def modulated_parts(self) -> Iterator[Modulated]: ...


@torch.inference_mode()
def modulation_table(model: Hoisted, sigma_N: Tensor, told: Conditions) -> Tensor:
    """(N, G, M, D): every modulation vector of every step, in one pass over their weights."""
    filled_N = filled(sigma_N)
    with told.beside():
        rows = model.modulate(_conditioned(model, filled_N, told))
    table: Tensor = rearrange(rows, "(N G) M D -> N G M D", N=len(filled_N))
    return table[: len(sigma_N)]


@torch.inference_mode()
def modulation_tables(
    model: Hoisted, sigma_N: Tensor, batches: Sequence[Conditions]
) -> list[Tensor]:
    """The same tables for several micro-batches, each at its own shape, in one pass over the
    weights. They come to lie on the host, where a card's loop fetches a step's rows.

    Nothing stands beside the weights here: that would be for one micro-batch alone.
    """
    filled_N = filled(sigma_N)
    vectors = [_conditioned(model, filled_N, told) for told in batches]
    rows: list[list[Tensor]] = [[] for _ in batches]
    for part in model.modulated_parts():
        for mine, c_BD in zip(rows, vectors, strict=True):
            mine.append(part.modulate(c_BD))
    tables = []
    for mine in rows:
        table = rearrange(torch.cat(mine, 1), "(N G) M D -> N G M D", N=len(filled_N))
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=table.is_cuda)
        tables.append(host.copy_(table)[: len(sigma_N)])
        mine.clear()
    return tables


def filled(sigma_N: Tensor) -> Tensor:
    """Steps up to a multiple of four.

    MKL sums the rows beyond the last full group of four in another order, so that a row's last
    bits would depend on where in the batch it stands.
    """
    return F.pad(sigma_N, (0, -len(sigma_N) % STEPS_TOGETHER), value=1.0)


def _conditioned(model: Hoisted, sigma_N: Tensor, told: Conditions) -> Tensor:
    steps, rows = len(sigma_N), len(told.pooled_GP)
    return model.condition(
        sigma_N.repeat_interleave(rows),
        told.pooled_GP.repeat(steps, 1),
        told.guidance_G.repeat(steps),
    )


def guide(velocity_GSC: Tensor, cfg_B: Tensor | None) -> Tensor:
    """Classifier-free guidance: away from the negative side by each row's own factor."""
    if cfg_B is None:
        return velocity_GSC
    positive, negative = velocity_GSC.chunk(2)
    return negative + cfg_B[:, None, None] * (positive - negative)


def plain(steps: Iterable[int]) -> Iterable[int]:
    return steps


@torch.inference_mode()
def denoise(
    dit: FluxTransformer,
    x_BSC: Tensor,
    told: Conditions,
    *,
    sigmas: Tensor,
    table_NGMD: Tensor,
    rotation_2LR: Tensor,
    reuse: frozenset[int] = frozenset(),
    progress: Progress = plain,
    record: Record = nothing,
) -> Tensor:
    """Latent patches after all steps, in float32; `x_BSC` is where the first step starts.

    Steps in `reuse` do without the blocks, approximately. Latents stay in float32 between steps,
    whatever the transformer computes in.
    """
    x_BSC = x_BSC.float()
    levels = sigmas.tolist()
    sides = len(told.pooled_GP) // len(x_BSC)
    cached = CachedTransformer(dit) if reuse else None
    with told.beside():
        for n in progress(range(len(table_NGMD))):
            x_GSC = x_BSC.to(told.text_GTW.dtype).repeat(sides, 1, 1)
            rows_GMD = table_NGMD[n].to(x_GSC.device, non_blocking=True)
            if cached is None:
                velocity = dit(x_GSC, told.text_GTW, rows_GMD, rotation_2LR)
            else:
                velocity = cached(x_GSC, told.text_GTW, rows_GMD, rotation_2LR, reuse=n in reuse)
            velocity_BSC = guide(velocity.float(), told.cfg_B)
            record(n, velocity_BSC)
            x_BSC = x_BSC + (levels[n + 1] - levels[n]) * velocity_BSC
    return x_BSC


@torch.inference_mode()
def rows_at(dit: FluxTransformer, sigma_B: Tensor, told: Conditions) -> Tensor:
    """(B, M, D): the rows of the table for one answer each, at noise levels of their own.

    `told` has one side: what guidance by a negative prompt would mix is asked for apart.
    """
    # several times over, for the reason that `filled` gives
    with told.beside():
        c = dit.condition(
            sigma_B.repeat(STEPS_TOGETHER),
            told.pooled_GP.repeat(STEPS_TOGETHER, 1),
            told.guidance_G.repeat(STEPS_TOGETHER),
        )
        return dit.modulate(c)[: len(sigma_B)]


@torch.inference_mode()
def velocities_at(
    dit: FluxTransformer, x_BSC: Tensor, told: Conditions, *, rows_BMD: Tensor, rotation_2LR: Tensor
) -> Tensor:
    """One answer for each row, (B, S, C) in float32; the rows of the table say at which level."""
    x_BSC = x_BSC.to(told.text_GTW.dtype)
    with told.beside():
        velocity: Tensor = dit(x_BSC, told.text_GTW, rows_BMD, rotation_2LR)
    return velocity.float()
