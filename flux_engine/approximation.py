"""In what an engine's pictures differ from the exact ones, on purpose; every record says it."""

from dataclasses import dataclass
from typing import Literal

Approximate = Literal["fp8", "step_cache"]


@dataclass(frozen=True)
class Approximation:
    """What was asked for, and which models keep their blocks' weights in eight bits."""

    asked: frozenset[Approximate] = frozenset()
    narrow: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.asked or self.narrow)

    def narrows(self, model: str) -> bool:
        """Whether the model's blocks keep eight bits."""
        return model in self.narrow or (self.products and model == "dit")

    @property
    def products(self) -> bool:
        return "fp8" in self.asked

    @property
    def step_cache(self) -> bool:
        return "step_cache" in self.asked

    def __str__(self) -> str:
        """As it stands in records; empty for exact pictures."""
        weights = [f"fp8_weights({'+'.join(sorted(self.narrow))})"] if self.narrow else []
        return ", ".join([*weights, *sorted(self.asked)])


EXACT = Approximation()
