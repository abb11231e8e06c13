"""How one tensor of a model is made of the tensors of a file, and taken apart again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Role = Literal["dit", "vae", "clip", "t5"]
Make = Callable[[Sequence[Tensor]], Tensor]
Unmake = Callable[[Tensor], Sequence[Tensor]]
Check = Callable[[Mapping[str, Tensor]], bool]


@dataclass(frozen=True)
class Recipe:
    """The file's keys, the shape that each must have, what is done with them, and its inverse."""

    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    make: Make
    unmake: Unmake


@dataclass(frozen=True)
class Blueprint:
    """A model on the meta device, and where the file keeps each of its tensors.

    `extras` are keys that a file may hold besides, if what is in them passes the check.
    `finish` completes the loaded model: ties, buffers that no file holds.
    """

    layout: str
    role: Role
    model: nn.Module
    recipes: Mapping[str, Recipe]
    extras: Mapping[str, Check] = field(default_factory=dict)
    finish: Callable[[nn.Module], None] = lambda _model: None


def as_stored(key: str, shape: Sequence[int]) -> Recipe:
    return Recipe((key,), (tuple(shape),), lambda parts: parts[0], lambda whole: [whole])


def reshaped(key: str, stored: Sequence[int], shape: Sequence[int]) -> Recipe:
    return Recipe(
        (key,),
        (tuple(stored),),
        lambda parts: parts[0].reshape(tuple(shape)),
        lambda whole: [whole.reshape(tuple(stored))],
    )


def stacked(keys: Sequence[str], rows: Sequence[int], shape: Sequence[int]) -> Recipe:
    """Fused rows: what the file keeps apart stands in one tensor, one below the other."""
    shapes = tuple((count, *shape[1:]) for count in rows)
    return Recipe(
        tuple(keys),
        shapes,
        lambda parts: torch.cat(list(parts)),
        lambda whole: torch.split(whole, list(rows)),
    )


def halves_swapped(key: str, shape: Sequence[int]) -> Recipe:
    return Recipe(
        (key,),
        (tuple(shape),),
        lambda parts: torch.cat(parts[0].chunk(2)[::-1]),
        lambda whole: [torch.cat(whole.chunk(2)[::-1])],
    )
