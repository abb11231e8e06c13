"""What a LoRA file holds once it is read: changes of named parts of the models."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from flux_engine.weights.lora.changes import (
    Change,
    Difference,
    LowRank,
    Replacement,
    decomposed,
    gather,
    scatter,
)
from flux_engine.weights.lora.names import Place, Role, Rows, Sizes

Parameter = Literal["weight", "bias", "scale"]


@dataclass(frozen=True)
class Part:
    """One change of one parameter of one module (or of a range of its rows).

    `magnitude`, (O, 1) or (1, C), makes it a DoRA. `name` is what the file called the module.
    """

    place: Place
    parameter: Parameter
    change: Change
    magnitude: Tensor | None = None
    name: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.change.tensors
            if self.magnitude is None
            else (*self.change.tensors, self.magnitude)
        )

    @property
    def target(self) -> tuple[Role, str, Parameter]:
        return self.place.role, self.place.module, self.parameter

    @property
    def plain(self) -> bool:
        """Whether it is low-rank and nothing else, so that it can be applied beside the weight."""
        return isinstance(self.change, LowRank) and self.magnitude is None

    def delta(self, base: Tensor | None) -> Tensor:
        """ΔW of the rows that it means, float32; `base` are those rows of the parameter."""
        if isinstance(self.change, Replacement):
            return self.change.change(needed(base))
        if self.magnitude is None:
            return self.change.delta()
        return decomposed(needed(base), self.change.delta(), self.magnitude)

    @property
    def needs_base(self) -> bool:
        return self.magnitude is not None or isinstance(self.change, Replacement)


def needed(base: Tensor | None) -> Tensor:
    assert base is not None, "this change is told by the base weight"
    return base


@dataclass(frozen=True, eq=False)
class Lora:
    """All parts of one file, in a fixed order, for models of these sizes.

    `digest` is the SHA-256 of the file's content; where α is told beside it, it is of both.
    """

    where: str
    parts: tuple[Part, ...]
    sizes: Sizes
    digest: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for part in self.parts for tensor in part.tensors)

    @cached_property
    def plain(self) -> bool:
        """Whether it only adds low-rank changes to weights of the transformer's linear layers."""
        return all(part.plain for part in self.of("dit"))

    @cached_property
    def targets(self) -> Mapping[tuple[Role, str, Parameter], tuple[Part, ...]]:
        out: dict[tuple[Role, str, Parameter], list[Part]] = {}
        for part in self.parts:
            out.setdefault(part.target, []).append(part)
        return {target: tuple(parts) for target, parts in out.items()}

    def of(self, *roles: Role) -> Iterator[Part]:
        return (part for part in self.parts if part.place.role in roles)


def full_delta(parts: Iterable[Part], base: Tensor) -> Tensor:
    """ΔW of a whole parameter, float32, from all parts of it; `base` is the unchanged parameter."""
    parts = list(parts)
    if len(parts) == 1 and rows_of(parts[0], len(base)) == ((0, len(base)),):
        return parts[0].delta(base)
    whole = torch.zeros(base.shape)
    for part in parts:
        ranges = rows_of(part, len(base))
        scatter(whole, part.delta(gather(base, ranges) if part.needs_base else None), ranges)
    return whole


def rows_of(part: Part, count: int) -> Rows:
    """The ranges of our parameter's rows that a part means; norms and encoders are whole."""
    return part.place.rows or ((0, count),)


def resolved(lora: Lora, base: Mapping[tuple[Role, str, Parameter], Tensor]) -> Lora:
    """The same LoRA without parts that only mean something beside a base weight."""
    parts = []
    for part in lora.parts:
        if part.needs_base:
            weight = base[part.target]
            delta = part.delta(gather(weight, rows_of(part, len(weight))))
            part = replace(part, change=Difference(delta), magnitude=None)
        parts.append(part)
    return replace(lora, parts=tuple(parts))
