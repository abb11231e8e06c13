"""Where a stage of training stands, as one safetensors file that appears whole or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

NET, AVERAGE, MOMENTS = "net.", "average.", "moments."


@dataclass(frozen=True)
class Checkpoint:
    """Steps done and CPU seconds spent; weights, their average and the optimiser's moments.

    Moments are named by the parameter's place in the optimiser and their own name there.
    """

    step: int
    seconds: float
    net: dict[str, Tensor]
    average: dict[str, Tensor]
    moments: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        step: int,
        seconds: float,
        net: nn.Module,
        average: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> Self:
        state = optimiser.state_dict()["state"]
        moments = {
            f"{place}.{name}": moment
            for place, held in state.items()
            for name, moment in held.items()
        }
        return cls(step, seconds, net.state_dict(), average, moments)

    def restore(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Give both their contents back; the optimiser's settings are its own."""
        net.load_state_dict(self.net)
        state: dict[int, dict[str, Tensor]] = {}
        for path, moment in self.moments.items():
            place, name = path.split(".")
            state.setdefault(int(place), {})[name] = moment
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})

    def write(self, path: Path) -> None:
        parts = {NET: self.net, AVERAGE: self.average, MOMENTS: self.moments}
        tensors = {
            prefix + name: tensor.detach().contiguous()
            for prefix, part in parts.items()
            for name, tensor in part.items()
        }
        partial = path.with_suffix(".partial")
        about = {"step": str(self.step), "cpu_s": repr(self.seconds)}
        save_file(tensors, partial, metadata=about)
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """On the CPU; whatever takes the tensors moves them."""
        parts: dict[str, dict[str, Tensor]] = {NET: {}, AVERAGE: {}, MOMENTS: {}}
        with safe_open(path, "pt") as file:
            about = file.metadata()
            for key in file.keys():  # noqa: SIM118  it is no dictionary
                prefix, name = key.split(".", 1)
                parts[prefix + "."][name] = file.get_tensor(key)
        return cls(
            int(about["step"]), float(about["cpu_s"]), parts[NET], parts[AVERAGE], parts[MOMENTS]
        )
