"""One stage of training: steps that a stopped and resumed run repeats to the last bit."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shapes.checkpoint import Checkpoint

LOG_EVERY, CLIP, FLOOR = 25, 1.0, 0.02


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, and how often to leave a checkpoint."""

    steps: int
    rate: float
    warmup: int = 50
    keep_every: int = 200
    averaging: float = 0.0  # decay of the weight average; 0 keeps the last weights

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a fiftieth."""
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (FLOOR + (1 - FLOOR) * falling)


class Journal:
    """Lines of JSON about one stage, with the seconds that it has taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent, self.started = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of this stage, those before a resume included."""
        return self.spent + time.process_time() - self.started

    def write(self, **fields: object) -> None:
        line = json.dumps({**fields, "cpu_s": round(self.seconds, 1)})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(self.path.stem, line, flush=True)

    def forget_after(self, step: int) -> None:
        """Drop the lines that a resumed run is about to write again."""
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            self.path.write_text("".join(x for x in lines if json.loads(x).get("step", 0) < step))


class WeightAverage:
    """An exponential average of parameters, which follows fast at first."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in net.named_parameters()}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in net.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        for name, kept in self.weights.items():
            kept.copy_(weights[name])


def train(
    net: nn.Module,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    *,
    checkpoint: Path,
    journal: Journal,
) -> None:
    """Minimise `loss_of(step)` from the last checkpoint on; `net` ends with the final weights.

    `loss_of` must draw nothing that does not depend on the step alone.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    average = WeightAverage(net, schedule.averaging)
    first = 0
    if checkpoint.exists():
        kept = Checkpoint.read(checkpoint)
        kept.restore(net, optimiser)
        average.restore(kept.average)
        first, journal.spent = kept.step, kept.seconds
    journal.forget_after(first)
    for step in range(first, schedule.steps):
        loss = descend(net, optimiser, loss_of(step), schedule.rate_at(step))
        average.update(net, step)
        if step % LOG_EVERY == 0 or step == schedule.steps - 1:
            journal.write(step=step, loss=round(loss.item(), 5))
        if (step + 1) % schedule.keep_every == 0 or step + 1 == schedule.steps:
            at = (step + 1, journal.seconds)
            Checkpoint.of(*at, net, average.weights, optimiser).write(checkpoint)
    if schedule.averaging:
        net.load_state_dict(average.weights)


def descend(net: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float) -> Tensor:
    """One step down the loss's gradient, cut to a norm of `CLIP`."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    optimiser.step()
    return loss.detach()
