"""LoRAs that a model wears for good before it is trained: the next one learns what they leave.

Two LoRAs whose difference is one thing are so trained one upon the other.
"""

from collections.abc import Sequence

import torch

from flux_engine.errors import SettingError
from flux_engine.models.fp8 import narrow_in
from flux_engine.weights.lora.file import Lora, full_delta
from flux_engine.weights.lora.models import Models, Target
from flux_engine.weights.lora.names import Role


@torch.no_grad()
def merge(models: Models, loras: Sequence[tuple[Lora, float]]) -> None:
    """W + Σ scale · ΔW in float32, rounded once, in the place of W.

    CheckpointError lists what a LoRA changes and these models do not have.
    """
    if any(narrow_in(models.dit)):
        raise SettingError("a preset LoRA is merged before weights are narrowed to eight bits")
    worn: dict[tuple[Role, str], list[tuple[Lora, Target, float]]] = {}
    for lora, scale in loras:
        for target, name in models.names(lora).items():
            worn.setdefault((target[0], name), []).append((lora, target, scale))
    for (role, name), changes in worn.items():
        parameter = dict(models.parameters(role))[name]
        base = changed = parameter.detach().float().cpu()
        for lora, target, scale in changes:
            changed = changed + scale * full_delta(lora.targets[target], base)
        # not in place: what was read may be a view of the file
        parameter.data = changed.to(parameter)
