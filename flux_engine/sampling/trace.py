"""What a denoising path is kept as: the velocity of each of its segments, and where they meet.

Shape letters: B batch, S image tokens, C patch channels, K segments, N steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Record = Callable[[int, Tensor], None]


def nothing(step: int, velocity_BSC: Tensor) -> None:
    """Keeps nothing of a path."""


def bounds(steps: int, segments: int | None) -> tuple[int, ...]:
    """Steps at which segments begin, and the end: as even as can be; None: each step is one."""
    count = steps if segments is None else min(segments, steps)
    return tuple(round(k * steps / count) for k in range(count + 1))


class Recorder:
    """Sums up the velocities of each segment, weighted by their parts of it.

    The velocity of a segment leads from the state at its beginning to that at its end:
    u = (x_begin − x_end) ÷ (σ_begin − σ_end) = Σ (σ_n − σ_n+1)·v_n ÷ (σ_begin − σ_end).
    """

    def __init__(self, sigmas: Sequence[float], ends: Sequence[int]) -> None:
        self.sigmas, self.ends = sigmas, ends
        self._done: list[Tensor] = []
        self._sum: Tensor | None = None

    def __call__(self, step: int, velocity_BSC: Tensor) -> None:
        first, last = self.ends[len(self._done)], self.ends[len(self._done) + 1]
        if last - first == 1:
            self._done.append(velocity_BSC)
            return
        length = self.sigmas[first] - self.sigmas[last]
        part = velocity_BSC * ((self.sigmas[step] - self.sigmas[step + 1]) / length)
        self._sum = part if self._sum is None else self._sum + part
        if step + 1 == last:
            self._done.append(self._sum)
            self._sum = None

    def velocities(self) -> Tensor:
        """(B, K, S, C) in float32."""
        return torch.stack(self._done, dim=1)


def states(start: Tensor, velocities_K: Tensor, sigmas_K1: Sequence[float]) -> Tensor:
    """The states at all bounds, (K + 1, …), from the first one and the segments' velocities."""
    out = [start.float()]
    for k, velocity in enumerate(velocities_K):
        out.append(out[-1] + (sigmas_K1[k + 1] - sigmas_K1[k]) * velocity.float())
    return torch.stack(out)
