"""The loop: noise and text into latents, one velocity a step.

Shape letters: B batch, S image tokens, T text tokens, C patch channels, P pooled width,
W text width, N steps, M modulation vectors, D hidden width, G = B, or 2 B with guidance by a
negative prompt (the prompts first, then the negative ones).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flux_engine.models.dit import FluxTransformer

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


@torch.inference_mode()
def modulation_table(dit: FluxTransformer, sigma_N: Tensor, told: Conditions) -> Tensor:
    """(N, G, M, D): every modulation vector of every step, in one pass over their weights."""
    # the steps are filled up: MKL sums the rows beyond the last full group of four in another
    # order, so that a row's last bits would depend on where in the batch it stands
    filled_N = F.pad(sigma_N, (0, -len(sigma_N) % STEPS_TOGETHER), value=1.0)
    steps, rows = len(filled_N), len(told.pooled_GP)
    with told.beside():
        c = dit.condition(
            filled_N.repeat_interleave(rows),
            told.pooled_GP.repeat(steps, 1),
            told.guidance_G.repeat(steps),
        )
        table: Tensor = rearrange(dit.modulate(c), "(N G) M D -> N G M D", N=steps)
    return table[: len(sigma_N)]


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
    progress: Progress = plain,
) -> Tensor:
    """Latent patches after all steps, in float32; `x_BSC` is where the first step starts.

    Latents stay in float32 between steps, whatever the transformer computes in.
    """
    x_BSC = x_BSC.float()
    levels = sigmas.tolist()
    sides = len(told.pooled_GP) // len(x_BSC)
    with told.beside():
        for n in progress(range(len(table_NGMD))):
            x_GSC = x_BSC.to(told.text_GTW.dtype).repeat(sides, 1, 1)
            velocity = dit(x_GSC, told.text_GTW, table_NGMD[n], rotation_2LR)
            x_BSC = x_BSC + (levels[n + 1] - levels[n]) * guide(velocity.float(), told.cfg_B)
    return x_BSC
