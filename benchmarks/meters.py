"""Counters on a model's parts: what is computed how often, whatever the clock says."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Meter:
    """How often a module ran, and over how many rows in all."""

    calls: int = 0
    rows: int = 0

    def see(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next(x for x in (*args, *named.values()) if isinstance(x, Tensor))
        self.calls += 1
        self.rows += len(first)


@contextmanager
def metered(parts: Mapping[str, nn.Module]) -> Iterator[dict[str, dict[str, int]]]:
    """The readings, by part, which are there once the block is left."""
    meters = {name: Meter() for name in parts}
    readings: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        for name, module in parts.items():
            hook = module.register_forward_pre_hook(meters[name].see, with_kwargs=True)
            stack.callback(hook.remove)
        yield readings
    readings |= {name: asdict(meter) for name, meter in meters.items()}
