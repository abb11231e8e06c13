"""Learning rates by step: a warm-up, then a shape."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The rate of each of `steps` steps; `floor` is the share of `rate` that the last step keeps.

    The warm-up rises linearly over `warmup_steps` and is laid over the shape: at no step is the
    rate zero, and without a warm-up the first step has all of it.
    """

    rate: float
    steps: int
    shape: Shape = "constant"
    warmup_steps: int = 0
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """The rate of the step of this number, from 0 on."""
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.rate * rising * (self.floor + (1 - self.floor) * self._falling(step))

    def _falling(self, step: int) -> float:
        """From 1 to 0 over all steps."""
        match self.shape:
            case "constant":
                return 1.0
            case "linear":
                return 1 - step / self.steps
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * step / self.steps))
