"""An exponential average of what is trained (EMA)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows fast at first, so that what training began with is soon forgotten. In float32
    whatever the parameters' type: a step of 1 − decay is less than others can tell."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.parameters = decay, parameters
        self.tensors = {
            name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()
        }
        self._aside: dict[str, Tensor] = {}  # on the host, while narrower parameters show them

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters after the step of this number, from 0 on."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.tensors[name].lerp_(parameter.float(), 1 - decay)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, kept in self.tensors.items():
            kept.copy_(tensors[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Let the parameters and their average change places; twice changes no bit."""
        for name, parameter in self.parameters.items():
            average = self.tensors[name]
            exact = self._aside.pop(name, None)
            if exact is None and parameter.dtype != average.dtype:
                self._aside[name] = average.to("cpu", copy=True)
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held if exact is None else exact)
