"""Learning from stored targets: a teacher's pictures, paths and answers.

Shape letters: Z latent channels, H and W latent cells (h and w), K segments, M times, G values of
guidance.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flux_engine.errors import TrainingError
from flux_engine.training.loss import along, guided_target, noised, velocity_target
from flux_engine.training.material import Material
from flux_engine.training.objective import Asks, Batch, Example
from flux_engine.training.terms import PLAIN, Guidance, Terms, level_of, told, velocity
from flux_engine.training.timesteps import UNIFORM, Level, Timesteps

PATHS = frozenset({"pair", "path"})
ANSWERS = frozenset({"velocity"})


@dataclass(frozen=True, kw_only=True)
class Reflow:
    """‖v − (noise − x̂0)‖² on the line from the teacher's picture to the noise it was made of."""

    kinds: ClassVar[frozenset[str]] = PATHS
    timesteps: Timesteps = UNIFORM
    terms: Terms = PLAIN
    guidance: Guidance = "row"

    def draw(self, material: Material, random: torch.Generator) -> Example:
        states, _ = path_of(material, "reflow")
        noise, x0 = states[0], states[-1]
        level = level_of(self.timesteps, material, x0, random)
        guidance = told(self.guidance, material, random, "reflow")
        state = noised(x0[None], noise[None], torch.tensor([level.sigma]))[0]
        target = velocity_target(x0, noise)
        return self.terms.sample(material, level, guidance, state=state, others={"target": target})

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        return self.terms.compare(velocity(ask, batch), batch["target"], batch)


@dataclass(frozen=True, kw_only=True)
class Jump:
    """‖v − (x_k − x_{k+1}) ÷ (σ_k − σ_{k+1})‖²: at one state of a path, its way to the next.

    `steps` is how many segments the student is to have, each of as many of the path's.
    """

    kinds: ClassVar[frozenset[str]] = PATHS
    terms: Terms = PLAIN
    guidance: Guidance = "row"
    steps: int | None = None

    def draw(self, material: Material, random: torch.Generator) -> Example:
        states, sigmas = path_of(material, "jump", self.steps)
        k = one_of(len(sigmas) - 1, random)
        guidance = told(self.guidance, material, random, "jump")
        target = (states[k] - states[k + 1]) / (sigmas[k] - sigmas[k + 1])
        level = Level(sigmas[k], sigmas[k])
        return self.terms.sample(
            material, level, guidance, state=states[k], others={"target": target}
        )

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        return self.terms.compare(velocity(ask, batch), batch["target"], batch)


@dataclass(frozen=True, kw_only=True)
class X0:
    """‖(x_k − σ_k·v) − x̂0‖²: at one state of a path, where it ends. `steps` as in `Jump`."""

    kinds: ClassVar[frozenset[str]] = PATHS
    terms: Terms = PLAIN
    guidance: Guidance = "row"
    steps: int | None = None

    def draw(self, material: Material, random: torch.Generator) -> Example:
        states, sigmas = path_of(material, "x0", self.steps)
        k = one_of(len(sigmas) - 1, random)
        guidance = told(self.guidance, material, random, "x0")
        level = Level(sigmas[k], sigmas[k])
        return self.terms.sample(
            material, level, guidance, state=states[k], others={"x0": states[-1]}
        )

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        x = batch["x"]
        end = x - along(batch["sigma"], x) * velocity(ask, batch)
        return self.terms.compare(end, batch["x0"], batch)


@dataclass(frozen=True, kw_only=True)
class Kd:
    """‖v − v_cond‖²: the teacher's answer at one stored guidance, which the student is told.

    `guidance` picks one of the stored values; without it each sample draws one.
    """

    kinds: ClassVar[frozenset[str]] = ANSWERS
    terms: Terms = PLAIN
    guidance: float | None = None

    def draw(self, material: Material, random: torch.Generator) -> Example:
        state, level, m = answered(material, "kd", random)
        g = (
            one_of(len(material.guidances), random)
            if self.guidance is None
            else stored(material, self.guidance, "kd")
        )
        target = conditional(material, "kd")[m, g]
        return self.terms.sample(
            material, level, material.guidances[g], state=state, others={"target": target}
        )

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        return self.terms.compare(velocity(ask, batch), batch["target"], batch)


@dataclass(frozen=True, kw_only=True)
class KdW:
    """‖v − (v_u + w·(v_c − v_u))‖², w drawn from `weights` and told to the student as guidance.

    `guidance` picks the stored answer that is v_c, where there are several.
    """

    kinds: ClassVar[frozenset[str]] = ANSWERS
    terms: Terms = PLAIN
    weights: tuple[float, float] = (1.0, 5.0)
    guidance: float | None = None

    def draw(self, material: Material, random: torch.Generator) -> Example:
        state, level, m = answered(material, "kd_w", random)
        if material.v_uncond is None:
            raise material.lacks("v_uncond", "kd_w")
        if self.guidance is None and len(material.guidances) > 1:
            raise TrainingError(
                f"{material.name}: has answers at guidances {material.guidances}; kd_w has to be "
                "told which one is meant"
            )
        g = 0 if self.guidance is None else stored(material, self.guidance, "kd_w")
        w = told(self.weights, material, random, "kd_w")
        pair = material.v_uncond[m], conditional(material, "kd_w")[m, g]
        target = guided_target(pair[0][None], pair[1][None], torch.tensor([w]))[0]
        return self.terms.sample(material, level, w, state=state, others={"target": target})

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        return self.terms.compare(velocity(ask, batch), batch["target"], batch)


def one_of(count: int, random: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=random))


def path_of(
    material: Material, objective: str, steps: int | None = None
) -> tuple[Tensor, tuple[float, ...]]:
    """States (K + 1, Z, h, w) and their levels, of a path in `steps` segments; noise and picture
    are a path of one."""
    if material.states is not None:
        states, sigmas = material.states, material.sigmas
        if len(states) != len(sigmas) or len(states) < 2 or sorted(sigmas)[::-1] != list(sigmas):
            raise TrainingError(
                f"{material.name}: has {len(states)} states at the levels {sigmas}; a path has "
                "one level for each, and they fall"
            )
    elif material.noise is None:
        raise material.lacks("path and no noise", objective)
    else:
        states, sigmas = torch.stack([material.noise, material.x0(objective, None)]), (1.0, 0.0)
    if steps is None:
        return states, sigmas
    each, rest = divmod(len(sigmas) - 1, steps)
    if rest or not each:
        raise TrainingError(
            f"{material.name}: its path of {len(sigmas) - 1} segments is not to be had in {steps}"
        )
    return states[::each], sigmas[::each]


def answered(
    material: Material, objective: str, random: torch.Generator
) -> tuple[Tensor, Level, int]:
    """A state at which the teacher was asked, its level, and its number."""
    if material.latent_ZHW is None:
        raise material.lacks("latent", objective)
    if material.noise is None or not material.t:
        raise material.lacks("noise and no times t", objective)
    if len(material.noise) != len(material.t):
        raise TrainingError(
            f"{material.name}: has {len(material.noise)} noises and {len(material.t)} times"
        )
    m = one_of(len(material.t), random)
    t = material.t[m]
    state = noised(material.latent_ZHW[None], material.noise[m][None], torch.tensor([t]))[0]
    return state, Level(t, t), m


def conditional(material: Material, objective: str) -> Tensor:
    """The teacher's answers to the prompt, (M, G, Z, h, w)."""
    if material.v_cond is None:
        raise material.lacks("v_cond", objective)
    if material.v_cond.shape[:2] != (len(material.t), len(material.guidances)):
        raise TrainingError(
            f"{material.name}: v_cond is {tuple(material.v_cond.shape)} for {len(material.t)} "
            f"times and {len(material.guidances)} guidances"
        )
    return material.v_cond


def stored(material: Material, guidance: float, objective: str) -> int:
    if guidance not in material.guidances:
        raise TrainingError(
            f"{material.name}: has no answer at guidance {guidance}, which {objective} is to "
            f"learn; there are {material.guidances}"
        )
    return material.guidances.index(guidance)
