"""The ways in which a LoRA file says how a weight changes, and the algebra of each.

Shape letters: O rows (output channels) and C columns (input channels) of the weight, R rank. All
results are float32. Sources: LoRA (Hu et al. 2021), LoHa and LoKr as LyCORIS writes them, DoRA
(Liu et al. 2024) as peft and LyCORIS compute it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """ΔW = (α ÷ R) · up · down."""

    down_RC: Tensor
    up_OR: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down_RC)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up_OR.shape[0], self.down_RC.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.down_RC, self.up_OR

    def delta(self) -> Tensor:
        return (self.up_OR.float() * self.scale) @ self.down_RC.float()

    def norm(self) -> float:
        """‖ΔW‖ (Frobenius) without making ΔW: the trace of (upᵀ·up)·(down·downᵀ)."""
        up, down = self.up_OR.double(), self.down_RC.double()
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
        return abs(self.scale) * float(square.sqrt())


@dataclass(frozen=True)
class Hadamard:
    """LoHa: ΔW = (α ÷ R) · (a1·b1) ∘ (a2·b2)."""

    a1_OR: Tensor
    b1_RC: Tensor
    a2_OR: Tensor
    b2_RC: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.b1_RC)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.a1_OR.shape[0], self.b1_RC.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.a1_OR, self.b1_RC, self.a2_OR, self.b2_RC

    def delta(self) -> Tensor:
        first = self.a1_OR.float() @ self.b1_RC.float()
        return first.mul_(self.a2_OR.float() @ self.b2_RC.float()).mul_(self.alpha / self.rank)

    def norm(self) -> float:
        return float(self.delta().norm())


@dataclass(frozen=True)
class Kronecker:
    """LoKr: ΔW = scale · w1 ⊗ w2, each whole or a product of two factors of rank R.

    LyCORIS scales by α ÷ R where a factor is a product, and not where both are whole.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float

    @property
    def rank(self) -> int | None:
        return kronecker_rank(self.w1, self.w2)

    @property
    def shape(self) -> tuple[int, ...]:
        (rows1, columns1), (rows2, columns2) = (
            (factors[0].shape[0], factors[-1].shape[1]) for factors in (self.w1, self.w2)
        )
        return (rows1 * rows2, columns1 * columns2)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.w1, *self.w2

    def delta(self) -> Tensor:
        return torch.kron(product(self.w1), product(self.w2)).mul_(self.scale)

    def norm(self) -> float:
        return abs(self.scale) * float(product(self.w1).norm() * product(self.w2).norm())


@dataclass(frozen=True)
class Whole:
    """As many numbers as the parameter has."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.value,)


@dataclass(frozen=True)
class Difference(Whole):
    """ΔW itself; of weights, biases and norms."""

    def delta(self) -> Tensor:
        return self.value.float()

    def norm(self) -> float:
        return float(self.value.float().norm())


@dataclass(frozen=True)
class Replacement(Whole):
    """The new value, in the place of the old one."""

    def change(self, base: Tensor) -> Tensor:
        return self.value.float() - base.float()


Change = LowRank | Hadamard | Kronecker | Difference | Replacement


def kronecker_rank(w1: Sequence[Tensor], w2: Sequence[Tensor]) -> int | None:
    """R of the factor that is a product (the second one's, if both are); None if none is."""
    ranks = [len(factors[1]) for factors in (w1, w2) if len(factors) == 2]
    return ranks[-1] if ranks else None


def product(factors: Sequence[Tensor]) -> Tensor:
    first = factors[0].float()
    return first if len(factors) == 1 else first @ factors[1].float()


def decomposed(base: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's change of a weight: rows (or columns) of base + delta brought to `magnitude`.

    The magnitude has one number for each row (O, 1), or one for each column (1, C).
    """
    base = base.float()
    changed = base + delta
    axis = 1 if magnitude.shape[0] == changed.shape[0] and magnitude.shape[1] == 1 else 0
    norm = changed.norm(dim=axis, keepdim=True)
    eps = torch.finfo(torch.float32).eps
    out: Tensor = changed * (magnitude.float() / (norm + eps)) - base
    return out


def stacked(parts: Sequence[tuple[LowRank, Sequence[tuple[int, int]]]], rows: int) -> LowRank:
    """Several changes of ranges of one weight's rows as one change of the whole weight.

    Ranks add up, and scales are folded into `up` in float32: α is the new rank.
    """
    ranks = [part.rank for part, _ in parts]
    columns = parts[0][0].down_RC.shape[1]
    down = parts[0][0].down_RC.new_empty((sum(ranks), columns), dtype=torch.float32)
    up = torch.zeros(rows, sum(ranks))
    first = 0
    for part, ranges in parts:
        last = first + part.rank
        down[first:last] = part.down_RC
        scatter(up[:, first:last], part.up_OR.float() * part.scale, ranges)
        first = last
    return LowRank(down, up, float(sum(ranks)))


def scatter(whole: Tensor, part: Tensor, ranges: Sequence[tuple[int, int]]) -> None:
    """Add the rows of `part`, one range after the other, to where they belong in `whole`."""
    first = 0
    for start, stop in ranges:
        whole[start:stop] += part[first : first + stop - start]
        first += stop - start


def gather(whole: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of `whole` in these ranges, one after the other."""
    return torch.cat([whole[start:stop] for start, stop in ranges])
