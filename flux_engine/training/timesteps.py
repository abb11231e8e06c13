"""Noise levels to train at: how they are drawn, and how much each counts.

A distribution is given by its quantiles. So a row that narrows the levels does so in the same
way for all of them: it cuts shares off the distribution, counted from pure noise down.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from flux_engine.errors import SettingError
from flux_engine.sampling.schedule import DIFFSYNTH_SHIFT, flux_shift, sigmas

Weighting = Literal["none", "diffsynth", "sigma_sqrt", "cosmap"]
TimestepsName = Literal["uniform", "logit_normal", "flux_shift", "diffsynth", "diffsynth_exact"]
OPTIONS: Mapping[TimestepsName, frozenset[str]] = {
    "uniform": frozenset({"shift"}),
    "logit_normal": frozenset({"mean", "spread", "shift"}),
    "flux_shift": frozenset({"mean", "spread"}),
    "diffsynth": frozenset(),
    "diffsynth_exact": frozenset(),
}
ENTRIES = 1000  # of DiffSynth-Studio's table, and the number that its times end at


@dataclass(frozen=True)
class Level:
    """A noise level: `sigma` of the state, and `told`, what the model is told of it."""

    sigma: float
    told: float


class Timesteps(Protocol):
    """A distribution of noise levels."""

    def draw(
        self, random: torch.Generator, *, tokens: int, low: float = 0.0, high: float = 1.0
    ) -> Level:
        """A level for a picture of so many tokens, of the share from `low` to `high`."""


@dataclass(frozen=True)
class Fixed:
    """Always the same level; for losses that are to be compared."""

    sigma: float

    def draw(
        self,
        random: torch.Generator,  # noqa: ARG002
        *,
        tokens: int,  # noqa: ARG002
        low: float = 0.0,  # noqa: ARG002
        high: float = 1.0,  # noqa: ARG002
    ) -> Level:
        return Level(self.sigma, self.sigma)


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """Uniform, or the sigmoid of normal numbers if `spread` is given; then shifted towards noise.

    `shift` None is the one that FLUX.1 samples with, which grows with the picture.
    """

    mean: float = 0.0
    spread: float | None = None
    shift: float | None = 1.0

    def draw(
        self, random: torch.Generator, *, tokens: int, low: float = 0.0, high: float = 1.0
    ) -> Level:
        drawn = torch.rand((), generator=random, dtype=torch.float64)
        u = 1.0 - (low + (high - low) * drawn)
        if self.spread is not None:
            u = torch.sigmoid(self.mean + self.spread * torch.special.ndtri(u))
        shift = flux_shift(tokens) if self.shift is None else self.shift
        sigma = float(shift * u / (1.0 + (shift - 1.0) * u))
        return Level(sigma, sigma)


UNIFORM = Smooth()


@dataclass(frozen=True)
class Table:
    """DiffSynth-Studio's 1000 levels, each as likely as another.

    It rounds a level's time to bfloat16, tells the model that, and takes for the state the entry
    that is nearest to it: 351 of them are left. `exact` does not.
    """

    exact: bool = False

    def draw(
        self,
        random: torch.Generator,
        *,
        tokens: int,  # noqa: ARG002
        low: float = 0.0,
        high: float = 1.0,
    ) -> Level:
        first, last = int(low * ENTRIES), int(high * ENTRIES)
        # a narrow share still has an entry
        drawn = torch.randint(first, max(last, first + 1), (1,), generator=random)
        time = float(table()[drawn] * ENTRIES)
        if not self.exact:
            time = float(torch.tensor(time).bfloat16())
        return Level(float(table()[entry(time)]), time / ENTRIES)


@cache
def table() -> Tensor:
    """DiffSynth-Studio's levels, (1000,) in float32, falling."""
    return sigmas("diffsynth", ENTRIES, DIFFSYNTH_SHIFT)[:-1]


def entry(time: float) -> int:
    """The one nearest to a time, 0…1000."""
    return int((table() * ENTRIES - time).abs().argmin())


@cache
def bell() -> Tensor:
    """What each of those levels counts for, (1000,): a bell around the middle, 1 on average."""
    height = torch.exp(-2 * ((table() * ENTRIES - ENTRIES / 2) / ENTRIES) ** 2)
    height = height - height.min()
    return height * (ENTRIES / height.sum())


def weight(weighting: Weighting, sigma: float) -> float:
    """What a sample at this level counts for. SD3's two as diffusers has them."""
    match weighting:
        case "none":
            return 1.0
        case "diffsynth":
            return float(bell()[entry(sigma * ENTRIES)])
        case "sigma_sqrt":
            return sigma**-2 if sigma else math.inf
        case "cosmap":
            return 2.0 / (math.pi * (1.0 - 2.0 * sigma + 2.0 * sigma**2))


def timesteps(
    name: TimestepsName,
    *,
    mean: float | None = None,
    spread: float | None = None,
    shift: float | None = None,
) -> Timesteps:
    """The distribution of this name; SettingError for an option that it does not have."""
    given = {"mean": mean, "spread": spread, "shift": shift}
    useless = [option for option in given if given[option] is not None]
    useless = [option for option in useless if option not in OPTIONS[name]]
    if useless:
        allowed = ", ".join(sorted(OPTIONS[name])) or "no options"
        raise SettingError(
            f"timesteps {name} have no {' and no '.join(useless)}; allowed are: {allowed}"
        )
    for option in ("spread", "shift"):
        value = given[option]
        if value is not None and value <= 0:
            raise SettingError(f"timesteps {name}: {option} is {value}; it is above 0")
    if name in ("diffsynth", "diffsynth_exact"):
        return Table(exact=name == "diffsynth_exact")
    shifted = None if name == "flux_shift" else shift or 1.0
    if name == "uniform":
        return Smooth(shift=shifted)
    return Smooth(mean=mean or 0.0, spread=spread or 1.0, shift=shifted)
