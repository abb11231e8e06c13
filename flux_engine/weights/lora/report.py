"""What a LoRA does to a model, module by module: kind, rank, and how much it changes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flux_engine.weights.lora.changes import LowRank, Replacement, gather
from flux_engine.weights.lora.file import Lora, Parameter, Part, rows_of
from flux_engine.weights.lora.models import Target
from flux_engine.weights.lora.names import Role


@dataclass(frozen=True)
class Matched:
    """One parameter that the LoRA changes; `relative` is ‖ΔW‖ ÷ ‖W‖, None without the model."""

    role: Role
    module: str
    parameter: Parameter
    kind: str
    rank: int | None
    norm: float | None
    relative: float | None

    def __str__(self) -> str:
        rank = "" if self.rank is None else f" rank {self.rank}"
        relative = "" if self.relative is None else f" ‖ΔW‖/‖W‖ {self.relative:.2e}"
        return f"{self.role} {self.module}.{self.parameter}: {self.kind}{rank}{relative}"


def report(lora: Lora, base: Mapping[Target, Tensor] | None = None) -> list[Matched]:
    """One line for each parameter; with `base`, the unchanged parameters, relative sizes too."""
    out = []
    for target, parts in lora.targets.items():
        weight = None if base is None else base[target]
        norm = norm_of(parts, weight)
        size = 0.0 if weight is None else float(weight.float().norm())
        ranks = [part.change.rank for part in parts if isinstance(part.change, LowRank)]
        out.append(
            Matched(
                *target,
                kind=" and ".join(sorted({kind_of(part) for part in parts})),
                rank=max(ranks, default=None),
                norm=norm,
                relative=norm / size if norm is not None and size else None,
            )
        )
    return out


def kind_of(part: Part) -> str:
    return type(part.change).__name__ + ("" if part.magnitude is None else " with magnitudes")


def norm_of(parts: Sequence[Part], weight: Tensor | None) -> float | None:
    """‖ΔW‖ of a parameter; its parts change different rows."""
    squares = 0.0
    for part in parts:
        if part.needs_base:
            if weight is None:
                return None
            norm = float(part.delta(gather(weight, rows_of(part, len(weight)))).norm())
        else:
            assert not isinstance(part.change, Replacement)
            norm = part.change.norm()
        squares += norm**2
    return math.sqrt(squares)


def summary(matched: Sequence[Matched]) -> dict[str, object]:
    """The report in a line: how many parameters of which models, and the largest change."""
    roles = {role: sum(m.role == role for m in matched) for role in ("dit", "clip", "t5")}
    changes = [m.relative for m in matched if m.relative is not None]
    return {
        "matched": {role: count for role, count in roles.items() if count},
        "rank": max((m.rank for m in matched if m.rank is not None), default=None),
        "largest_change": max(changes, default=None),
    }
