"""The stages `teacher` and `guidance`: rectified flow, then its guidance in a single pass.

Shape letters: B batch, S image tokens, C patch channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flux_engine.models.dit import FluxTransformer
from flux_engine.training.loss import (
    flow_loss,
    noised,
    sample_sigmas,
    velocity_target,
)
from shapes.cache import Cache
from shapes.flow import ClassifierFree, Text, Velocity, initialise
from shapes.loop import Journal, Schedule, train
from shapes.recipe import Recipe
from shapes.world import keyed

DROPPED = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance
WEIGHTS = (1.0, 5.0)  # of guidance, drawn evenly


@dataclass(frozen=True)
class Batch:
    """Data and noise, (B, S, C), and where between them, (B,), the model is asked what."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    text: Text
    weight: Tensor

    @classmethod
    def draw(cls, cache: Cache, random: torch.Generator, size: int) -> "Batch":
        device = cache.latents.device
        index = torch.randint(len(cache.latents), (size,), generator=random).to(device)
        latents = cache.latents[index]
        noise = torch.randn(latents.shape, generator=random).to(device)
        sigma = sample_sigmas(size, random).to(device)
        dropped = (torch.rand(size, generator=random) < DROPPED).to(device)
        low, high = WEIGHTS
        weight = (low + (high - low) * torch.rand(size, generator=random)).to(device)
        text = cache.text[cache.captions[index]].without(dropped, cache.empty)
        return cls(latents, noise, sigma, text, weight)

    @property
    def x(self) -> Tensor:
        return noised(self.latents, self.noise, self.sigma)


def train_teacher(
    folder: Path, recipe: Recipe, cache: Cache, schedule: Schedule, *, seed: int
) -> FluxTransformer:
    """A transformer without embedded guidance, which two passes can guide."""
    device = cache.latents.device
    torch.manual_seed(seed)
    net = FluxTransformer(recipe.unguided)
    initialise(net)
    velocity = Velocity(net.to(device))

    def loss_of(step: int) -> Tensor:
        b = Batch.draw(cache, keyed(seed, "teacher", step), recipe.batch)
        answer = velocity(b.x, b.sigma, b.text, b.weight)
        return flow_loss(answer, velocity_target(b.latents, b.noise))

    run(net, loss_of, schedule, folder, "teacher")
    return net


def train_guidance(
    folder: Path,
    recipe: Recipe,
    cache: Cache,
    schedule: Schedule,
    teacher: FluxTransformer,
    *,
    seed: int,
) -> FluxTransformer:
    """The teacher's two passes, u + w·(c − u), learned as one that is told w."""
    device = cache.latents.device
    torch.manual_seed(seed)
    net = FluxTransformer(recipe.transformer)
    initialise(net)
    net.load_state_dict(teacher.state_dict(), strict=False)  # it has no guidance embedder
    velocity = Velocity(net.to(device))
    guided = ClassifierFree(teacher.to(device).requires_grad_(False), cache.empty)

    def loss_of(step: int) -> Tensor:
        b = Batch.draw(cache, keyed(seed, "guidance", step), recipe.batch)
        x_BSC = b.x
        with torch.no_grad():
            target = guided(x_BSC, b.sigma, b.text, b.weight)
        return flow_loss(velocity(x_BSC, b.sigma, b.text, b.weight), target)

    run(net, loss_of, schedule, folder, "guidance")
    return net


def run(
    net: FluxTransformer,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    folder: Path,
    stage: str,
) -> None:
    train(
        net,
        loss_of,
        schedule,
        checkpoint=folder / f"{stage}.checkpoint.safetensors",
        journal=Journal(folder / f"{stage}.jsonl"),
    )
    net.eval()
