"""Noise levels: how a picture's time is cut into steps.

Two schedules. `flux` is the one that FLUX.1 was trained and published with: uniform times from 1
to 0, bent by a shift that grows with the number of image tokens (Black Forest Labs, diffusers).
`diffsynth` is DiffSynth-Studio's: N points from σ_start down to σ_min, both included, bent by a
fixed shift of 3, with one more jump to 0.
"""

import math

import torch
from torch import Tensor

from flux_engine.request import Schedule

FLUX_MU = ((256, 0.5), (4096, 1.15))  # (image tokens, log of the shift): a line through both
DIFFSYNTH_SHIFT = 3.0
DIFFSYNTH_SIGMA_MIN = 0.003 / 1.002


def flux_shift(tokens: int) -> float:
    """The shift that FLUX.1-dev was published with, for a picture of so many tokens."""
    (x0, y0), (x1, y1) = FLUX_MU
    return math.exp(y0 + (tokens - x0) * (y1 - y0) / (x1 - x0))


def shift_of(
    schedule: Schedule, tokens: int, override: float | None, timestep_shift: bool
) -> float:
    """The shift that counts: what was asked for, else the schedule's own.

    `timestep_shift` is false for models that were published without one (FLUX.1-schnell).
    """
    if override is not None:
        return override
    if schedule == "diffsynth":
        return DIFFSYNTH_SHIFT
    return flux_shift(tokens) if timestep_shift else 1.0


def sigmas(schedule: Schedule, steps: int, shift: float, strength: float = 1.0) -> Tensor:
    """Noise levels (n + 1,) in float32, falling, the last one 0; n steps join them.

    `strength` in (0, 1] starts later, for a picture that is there already: `flux` runs the last
    ⌈steps · strength⌉ of its steps, `diffsynth` runs all `steps` from a lower start.
    """
    # float32 throughout, in the order of the two implementations: a last bit of σ is felt by the
    # sinusoids, which see 1000 σ
    if schedule == "diffsynth":
        start = DIFFSYNTH_SIGMA_MIN + (1.0 - DIFFSYNTH_SIGMA_MIN) * strength
        u = torch.linspace(start, DIFFSYNTH_SIGMA_MIN, steps)
        bent = shift * u / (1.0 + (shift - 1.0) * u)
    else:
        first = min(int(steps - steps * strength), steps - 1)  # as diffusers counts; one at least
        u = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float()[first:]
        bent = shift / (shift + (1.0 / u - 1.0))
    return torch.cat([bent, bent.new_zeros(1)])
