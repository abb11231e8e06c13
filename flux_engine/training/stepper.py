"""One step of training: a step's micro-batches into gradients, gradients into other weights."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flux_engine.training.average import WeightAverage
from flux_engine.training.objective import Batch
from flux_engine.training.optimizer import restore_state, state_of
from flux_engine.training.reduction import Reduction


class Judge(Protocol):
    """Says how far off a model is; an `Objective` is one."""

    def loss(self, ask: Any, batch: Batch) -> Tensor:
        """Of each sample, (B,)."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the model at once. `number` is its place in the step, `share` what
    its loss counts for."""

    number: int
    objective: Judge
    batch: Batch
    share: float = 1.0


@dataclass(frozen=True)
class StepFacts:
    """What became of a step. `losses` are those of its micro-batches by number, without their
    shares; `broken` names samples whose loss was no number; `skipped`: the weights stayed."""

    step: int
    loss: float
    losses: tuple[float, ...]
    grad_norm: float
    rate: float
    broken: tuple[str, ...] = ()
    skipped: bool = False


@dataclass(frozen=True)
class TrainingState:
    """All that a resumed run needs to know besides the step's number."""

    trainable: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    told: Mapping[str, Any]


class Stepper:
    """Descends. A step's `total` micro-batches count alike, whoever computes them."""

    def __init__(
        self,
        ask: Any,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        rates: Callable[[int], float],
        reduction: Reduction,
        *,
        total: int = 1,
        averaging: float = 0.0,
        clip: float | None = 1.0,
    ) -> None:
        """`ask` is what is trained, as objectives want it; `averaging` is the decay of the average
        of the weights, 0 for none; `clip` the largest norm of the gradient, None for any."""
        self.ask, self.parameters, self.optimizer = ask, parameters, optimizer
        self.rates, self.reduction, self.total = rates, reduction, total
        self.clip = clip
        self.average = WeightAverage(parameters, averaging) if averaging else None
        self._all = list(parameters.values())

    def step(self, number: int, work: Iterable[MicroBatch]) -> StepFacts:
        """The step of this number, from 0 on; `work` is this rank's part of it, in order."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, broken = [], []
        for micro in work:
            loss_B = micro.objective.loss(self.ask, micro.batch)
            loss = loss_B.mean()
            (loss * (micro.share / self.total)).backward()  # type: ignore[no-untyped-call]
            self.reduction.after_backward(self._all)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                broken += [
                    name
                    for name, one in zip(micro.batch.names, loss_B.tolist(), strict=True)
                    if not math.isfinite(one)
                ]
        self.reduction.finish(self._all)
        everyones = self.reduction.gathered(losses)
        whole = self._norm()
        norm = whole.item()
        rate = self.rates(number)
        skipped = not math.isfinite(norm) or not all(map(math.isfinite, everyones))
        if skipped:
            broken = self.reduction.names(broken)
        else:
            self._descend(number, rate, whole)
        return StepFacts(
            step=number,
            loss=sum(everyones) / len(everyones),
            losses=tuple(everyones),
            grad_norm=norm,
            rate=rate,
            broken=tuple(broken),
            skipped=skipped,
        )

    def _norm(self) -> Tensor:
        """Of the whole gradient, before it is cut."""
        return nn.utils.get_total_norm(p.grad for p in self._all if p.grad is not None)

    def _descend(self, number: int, rate: float, norm: Tensor) -> None:
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self._all, self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average is not None:
            self.average.update(number)

    def state(self) -> TrainingState:
        tensors, told = state_of(self.optimizer, self.parameters)
        return TrainingState(
            trainable={name: p.detach() for name, p in self.parameters.items()},
            optimizer=tensors,
            average=dict(self.average.tensors) if self.average else {},
            told=told,
        )

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Go on from there."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state.trainable[name])
        restore_state(self.optimizer, self.parameters, state.optimizer, state.told)
        if self.average is not None:
            self.average.restore(state.average)
