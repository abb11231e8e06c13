"""How the gradients of a step's micro-batches, made by several ranks, become one."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

CHUNK = 64 * 2**20  # bytes that are sent at a time


class Reduction(Protocol):
    """Rank `rank` of `world` computes the micro-batches rank, rank + world, …; where `world` does
    not divide their number, the last ones have one less."""

    rank: int
    world: int

    def after_backward(self, parameters: Sequence[nn.Parameter]) -> None:
        """A micro-batch's gradients are there, of each rank one."""

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Leave the sum over all micro-batches of all ranks in each parameter's `grad`."""

    def gathered(self, values: Sequence[float]) -> list[float]:
        """What each rank has of its micro-batches, in the order of their numbers."""

    def names(self, mine: Iterable[str]) -> list[str]:
        """What all ranks have to name."""

    def any(self, *, mine: bool) -> bool:
        """Whether it is so for any rank."""

    def most(self, mine: Sequence[float]) -> list[float]:
        """Of each value the largest that a rank has; in float64, so that all are told alike."""


class Alone:
    """One process: gradients add up where they are."""

    rank, world = 0, 1

    def after_backward(self, parameters: Sequence[nn.Parameter]) -> None:
        pass

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Of one that was not used, zeros, as in any other world: optimizers pass over None."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def gathered(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def names(self, mine: Iterable[str]) -> list[str]:
        return list(mine)

    def any(self, *, mine: bool) -> bool:
        return mine

    def most(self, mine: Sequence[float]) -> list[float]:
        return list(mine)


class Group:
    """The ranks of a process group that torch.distributed has started."""

    def __init__(self, device: torch.device, total: int) -> None:
        """A step has `total` micro-batches."""
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self.total = total

    def gathered(self, values: Sequence[float]) -> list[float]:
        lacking = -(-self.total // self.world) - len(values)
        told = [*values, *[0.0] * lacking]
        mine = torch.tensor(told, dtype=torch.float64, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(everyone, mine)
        together: list[float] = torch.stack(everyone, 1).flatten().tolist()
        return together[: self.total]

    def names(self, mine: Iterable[str]) -> list[str]:
        everyone: list[list[str]] = [[] for _ in range(self.world)]
        dist.all_gather_object(everyone, list(mine))
        return [name for names in everyone for name in names]

    def any(self, *, mine: bool) -> bool:
        return bool(self.most([float(mine)])[0])

    def most(self, mine: Sequence[float]) -> list[float]:
        values = torch.tensor(mine, dtype=torch.float64, device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        largest: list[float] = values.tolist()
        return largest


class Summed(Group):
    """Each rank adds up its own, then all ranks theirs: equal for any world but for rounding."""

    def after_backward(self, parameters: Sequence[nn.Parameter]) -> None:
        pass

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        for part in parts(parameters):
            flat = flattened(part)
            dist.all_reduce(flat)
            unflatten(flat, part)


class Ordered(Group):
    """Micro-batches are added up by their numbers: the same bits for any world.

    Costs as many transfers as there are micro-batches, and one more copy of the gradients.
    """

    def __init__(self, device: torch.device, total: int) -> None:
        super().__init__(device, total)
        self._sums: dict[int, Tensor] = {}
        self._added = 0  # micro-batches of the step, of all ranks

    def after_backward(self, parameters: Sequence[nn.Parameter]) -> None:
        count = min(self.world, self.total - self._added)
        for place, part in enumerate(parts(parameters)):
            mine = flattened(part)
            everyone = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(everyone, mine)
            for one in everyone[:count]:
                if place in self._sums:
                    self._sums[place] += one
                else:
                    self._sums[place] = one.clone()
        self._added += count
        for parameter in parameters:
            parameter.grad = None

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        if self._added < self.total:  # other ranks have one more
            self.after_backward(parameters)
        for place, part in enumerate(parts(parameters)):
            unflatten(self._sums[place], part)
        self._sums, self._added = {}, 0


def parts(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one type each, in pieces that are worth one transfer."""
    out: list[list[nn.Parameter]] = []
    held = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if not out or held + size > CHUNK or out[-1][0].dtype != parameter.dtype:
            out.append([])
            held = 0
        out[-1].append(parameter)
        held += size
    return out


def flattened(part: Sequence[nn.Parameter]) -> Tensor:
    """Their gradients side by side; of one that was not used, zeros."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in part])


def unflatten(flat: Tensor, part: Sequence[nn.Parameter]) -> None:
    for parameter, piece in zip(part, torch.split(flat, [p.numel() for p in part]), strict=True):
        parameter.grad = piece.view_as(parameter)
