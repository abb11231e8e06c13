"""What is learned from rows: an objective draws a sample of each, and tells a batch's losses.

Shape letters: B batch, Z latent channels, H and W latent cells, T text tokens, W text width,
P pooled width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flux_engine.errors import SettingError, TrainingError
from flux_engine.training.material import Material

LEVELS = "sigmas"  # (K + 1,): samples of one batch may take unlike numbers of steps


class Asks(Protocol):
    """A student: the velocity, (B, Z, H, W) in float32, that it answers at a state."""

    def __call__(
        self,
        x_BZHW: Tensor,
        sigma_B: Tensor,
        t5_BTW: Tensor,
        pooled_BP: Tensor,
        guidance_B: Tensor,
    ) -> Tensor: ...

    def bare(
        self,
        x_BZHW: Tensor,
        sigma_B: Tensor,
        t5_BTW: Tensor,
        pooled_BP: Tensor,
        guidance_B: Tensor,
    ) -> Tensor:
        """What it would answer without anything that is trained; no gradient."""


@dataclass(frozen=True, eq=False)
class Example:
    """One sample, on the host: what goes into a batch, by name."""

    name: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples side by side on the device; the first axis of every tensor is theirs."""

    names: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device | str = "cpu") -> "Batch":
        """TrainingError if the samples do not go together, naming two that differ."""
        first = examples[0]
        for other in examples[1:]:
            for name in sorted(set(first.tensors) | set(other.tensors)):
                ours, theirs = (_shape(one, name) for one in (first, other))
                if ours != theirs and not (name == LEVELS and ours and theirs):
                    raise TrainingError(
                        f"{name} of {first.name} is {_words(ours)}, of {other.name} "
                        f"{_words(theirs)}: they cannot share a batch"
                    )
        stacked = {name: _stack(name, examples) for name in first.tensors}
        return cls(
            tuple(example.name for example in examples),
            {name: tensor.to(device, non_blocking=True) for name, tensor in stacked.items()},
        )

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.names)


def _shape(example: Example, name: str) -> tuple[int, ...] | None:
    tensor = example.tensors.get(name)
    return None if tensor is None else tuple(tensor.shape)


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "a number"


def _stack(name: str, examples: Sequence[Example]) -> Tensor:
    tensors = [example.tensors[name] for example in examples]
    if name == LEVELS:  # they end at 0, and whoever has arrived stays there
        longest = max(map(len, tensors))
        tensors = [F.pad(tensor, (0, longest - len(tensor))) for tensor in tensors]
    return torch.stack(tensors)


class Objective(Protocol):
    """A way to learn from rows. `kinds` are the datasets that have what it needs: `pictures`
    (rows with an image), or kinds of distillation targets."""

    kinds: ClassVar[frozenset[str]]

    def draw(self, material: Material, random: torch.Generator) -> Example:
        """A sample of the row; every draw is from `random`.

        TrainingError if the row lacks what this objective needs, naming both.
        """

    def loss(self, ask: Asks, batch: Batch) -> Tensor:
        """The loss of each sample, (B,) in float32, its weight and mask applied."""


def check_kind(name: str, objective: Objective, kind: str) -> None:
    """SettingError if the objective `name` cannot learn from datasets of this kind."""
    if kind not in objective.kinds:
        allowed = ", ".join(sorted(objective.kinds))
        raise SettingError(f"{name} cannot learn from a dataset of kind {kind}; it takes {allowed}")
