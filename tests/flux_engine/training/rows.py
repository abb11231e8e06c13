"""A small transformer that is far from zero, and rows to train it on."""

from typing import Any

import torch
from torch import Tensor

from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.training.material import Material
from flux_engine.training.objective import Batch, Example
from tests.flux_engine.asking import noise

TINY = FluxSpec(
    width=64, heads=2, axes=(4, 14, 14), inner=128, double_blocks=2, single_blocks=3,
    text_width=24, pooled_width=40,
)  # fmt: skip
TEXT, LATENT = 5, (16, 4, 6)


def transformer(spec: FluxSpec = TINY) -> FluxTransformer:
    torch.manual_seed(0)
    return FluxTransformer(spec).eval().requires_grad_(requires_grad=False)


def row(number: int = 0, **other: Any) -> Material:
    """With a latent, unless told otherwise."""
    parts: dict[str, Any] = {
        "name": f"row {number}",
        "caption": "a fox",
        "t5_TW": noise(10 * number, TEXT, 24),
        "pooled_P": noise(10 * number + 1, 40),
        "latent_ZHW": noise(10 * number + 2, *LATENT),
    }
    return Material(**(parts | other))


class Recorder:
    """Answers with a multiple of the state, or with what it is given; remembers what it saw."""

    def __init__(self, answer: Tensor | None = None, bare: Tensor | None = None) -> None:
        self.answer, self.told_bare = answer, bare
        self.asked: list[tuple[Tensor, ...]] = []

    def __call__(self, *told: Tensor) -> Tensor:
        self.asked.append(told)
        return told[0] * 0.5 if self.answer is None else self.answer

    def bare(self, *told: Tensor) -> Tensor:
        self.asked.append(told)
        return torch.zeros_like(told[0]) if self.told_bare is None else self.told_bare


def batch(*examples: Example) -> Batch:
    return Batch.of(examples)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
