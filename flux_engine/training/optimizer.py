"""Optimizers by name or dotted path, and their state as tensors and plain values."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from flux_engine.errors import SettingError

NAMED = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "prodigy": "prodigyopt.Prodigy",
}
PLAIN = (bool, int, float, str, type(None))


def make_optimizer(
    kind: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    rate: float,
    weight_decay: float,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """`kind` is `adamw`, `adamw8bit`, `prodigy` or the dotted path of a class.

    `options` are its further arguments. SettingError for a class that is not there, or does not
    take them.
    """
    wanted = class_of(kind)
    given = {"lr": rate, "weight_decay": weight_decay, **(options or {})}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    taken = inspect.signature(wanted).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    if unknown := [name for name in given if name not in taken and not anything]:
        known = ", ".join(name for name in taken if name != "params")
        raise SettingError(f"optimizer {kind} does not take {', '.join(unknown)}; it takes {known}")
    try:
        made = wanted(list(parameters.values()), **given)
    except (TypeError, ValueError) as error:
        raise SettingError(f"optimizer {kind}: {error}") from None
    return made


def class_of(kind: str) -> type[torch.optim.Optimizer]:
    path = NAMED.get(kind, kind)
    module, _, name = path.rpartition(".")
    if not module:
        known = ", ".join(NAMED)
        raise SettingError(f"optimizer {kind!r}: known are {known}, or the dotted path of a class")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise SettingError(f"optimizer {kind}: {path} cannot be imported: {error}") from None
    except AttributeError:
        raise SettingError(f"optimizer {kind}: there is no {name} in {module}") from None
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer):
        raise SettingError(f"optimizer {kind}: is no torch.optim.Optimizer")
    return found


def state_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by parameter and field (`name|field`), and all else that JSON can say.

    SettingError for a state that is neither: it could not be taken up again.
    """
    tensors: dict[str, Tensor] = {}
    fields: dict[str, dict[str, Any]] = {}
    on_host: list[str] = []
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            where = f"{name}|{field}"
            if isinstance(value, Tensor):
                tensors[where] = value.detach()
                if value.device.type == "cpu":
                    on_host.append(where)
            else:
                fields.setdefault(name, {})[field] = plain(value, where)
    groups = [
        {k: plain(v, f"group {k}") for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]
    return tensors, {"fields": fields, "groups": groups, "on_host": on_host}


def restore_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    told: Mapping[str, Any],
) -> None:
    """Give an optimizer back what `state_of` took, bit for bit: nothing is cast."""
    on_host = frozenset(told["on_host"])
    states: dict[str, dict[str, Any]] = {
        name: {k: unplain(v) for k, v in fields.items()} for name, fields in told["fields"].items()
    }
    for where, value in tensors.items():
        name, _, field = where.rpartition("|")
        device = "cpu" if where in on_host else parameters[name].device
        states.setdefault(name, {})[field] = value.detach().to(device, copy=True)
    for name, state in states.items():
        optimizer.state[parameters[name]] = state
    for group, kept in zip(optimizer.param_groups, told["groups"], strict=True):
        group.update({k: unplain(v) for k, v in kept.items()})


def plain(value: Any, where: str) -> Any:
    """A value as JSON has it; a tensor of a group as its number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list):
        return [plain(one, where) for one in value]
    if isinstance(value, PLAIN):
        return value
    raise SettingError(f"the optimizer keeps {where} as {type(value).__name__}: cannot be written")


def unplain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
