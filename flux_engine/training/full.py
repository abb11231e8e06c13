"""The transformer's own weights while they are trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from flux_engine.errors import SettingError
from flux_engine.models.dit import FluxTransformer
from flux_engine.models.fp8 import narrow_in
from flux_engine.training.layers import REGEX, means

EVERYTHING = ("*",)


class TrainedWeights:
    """Those that patterns name, in `master_dtype`; all others are frozen as they are.

    `keep_base` keeps what they were, so that there is something to come back to.
    """

    def __init__(
        self,
        dit: FluxTransformer,
        patterns: Sequence[str] = EVERYTHING,
        *,
        master_dtype: torch.dtype = torch.float32,
        keep_base: bool = False,
    ) -> None:
        if any(narrow_in(dit)):
            raise SettingError("weights that are kept in eight bits can only be frozen")
        self.dit = dit
        names = chosen_parameters(patterns, dit)
        dit.requires_grad_(requires_grad=False)
        parameters = dict(dit.named_parameters())
        self._base = {n: parameters[n].detach().clone() for n in names} if keep_base else None
        self.trainable: Mapping[str, nn.Parameter] = {name: parameters[name] for name in names}
        for parameter in self.trainable.values():
            # not the tensor that was read, which may be a view of the file
            parameter.data = parameter.detach().to(master_dtype, copy=True)
            parameter.requires_grad = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the transformer has the weights that it began with."""
        if self._base is None:
            raise SettingError(
                "what the transformer answered before training is asked for, and its weights were "
                "not kept: keep_base keeps them"
            )
        held = {name: parameter.data for name, parameter in self.trainable.items()}
        try:
            for name, parameter in self.trainable.items():
                parameter.data = self._base[name]
            yield
        finally:
            for name, parameter in self.trainable.items():
                parameter.data = held[name]

    def weights(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All weights of the transformer, with these tensors in the place of the trained ones."""
        whole = {name: parameter.detach() for name, parameter in self.dit.named_parameters()}
        return whole | {name: (tensors or whole)[name] for name in self.trainable}


def chosen_parameters(patterns: Sequence[str], dit: nn.Module) -> tuple[str, ...]:
    """Names of parameters, or of modules for all that is in them; globs, or regular expressions
    behind `re:`. SettingError for a pattern that names nothing."""
    names = [name for name, _ in dit.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if names_it(pattern, name)}
        if not found:
            raise SettingError(
                f"{pattern!r} names no weight; patterns are such as double_blocks.*, img_in, "
                "*.img_attn.qkv.weight"
            )
        chosen |= found
    if not chosen:
        raise SettingError(f"no weights to train are named; {EVERYTHING[0]} is all of them")
    return tuple(name for name in names if name in chosen)


def names_it(pattern: str, name: str) -> bool:
    if pattern.startswith(REGEX):
        return means(pattern, name)
    return means(pattern, name) or fnmatchcase(name, f"{pattern}.*")
