"""A LoRA while it is trained: factors in float32 beside chosen layers of the transformer.

Shape letters: O rows and C columns of a layer's weight, R rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from flux_engine.errors import CheckpointError, SettingError
from flux_engine.models.dit import FluxSpec, FluxTransformer
from flux_engine.training.chance import chance
from flux_engine.training.layers import by_pattern, chosen_layers, linear_layers
from flux_engine.weights.lora.changes import LowRank, scatter, stacked
from flux_engine.weights.lora.file import Lora, Part, rows_of
from flux_engine.weights.lora.names import Place, Sizes

A, B = "lora_A", "lora_B"  # down (R, C) and up (O, R), as peft names them


@dataclass(frozen=True, kw_only=True)
class LoraShape:
    """Which layers, and of which rank and α each; α is the rank unless it is told.

    `ranks` and `alphas` are by pattern, and the first that means a layer counts.
    """

    targets: Sequence[str] = ("all",)
    exclude: Sequence[str] = ()
    rank: int = 32
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def of(self, spec: FluxSpec) -> dict[str, tuple[int, float]]:
        """Rank and α of each layer, in the model's order; SettingError for what is of no use."""
        layers = chosen_layers(self.targets, spec, exclude=self.exclude)
        ranks = by_pattern(self.ranks, layers, spec, "ranks")
        alphas = by_pattern(self.alphas, layers, spec, "alphas")
        wrong = [r for r in (self.rank, *self.ranks.values()) if r < 1]
        if wrong:
            raise SettingError(f"rank is {wrong[0]}; allowed are 1 and more")
        out: dict[str, tuple[int, float]] = {}
        for layer in layers:
            rank = int(ranks.get(layer, self.rank))
            usual = float(rank) if self.alpha is None else self.alpha
            out[layer] = rank, alphas.get(layer, usual)
        return out


class TrainedLora(nn.Module):
    """Adds (α ÷ R) · B·A·x to what the chosen layers say.

    A is drawn uniformly within 1 ÷ √C, as peft does, from the seed and the layer's name; B is
    zero, so that nothing has changed yet.
    """

    def __init__(self, dit: FluxTransformer, shape: LoraShape, *, seed: int = 0) -> None:
        super().__init__()
        self.spec = dit.spec
        self.shape = shape.of(dit.spec)
        self.factors = nn.ParameterDict()
        self._off = False
        for layer, (rank, alpha) in self.shape.items():
            module = dit.get_submodule(layer)
            assert isinstance(module, nn.Linear)
            place = module.weight.device
            down_RC = torch.empty(rank, module.in_features)
            nn.init.kaiming_uniform_(down_RC, a=5**0.5, generator=chance(seed, "lora", layer))
            up_OR = torch.zeros(module.out_features, rank)
            for name, tensor in ((A, down_RC), (B, up_OR)):
                self.factors[entry(layer, name)] = nn.Parameter(tensor.to(place))
            module.register_forward_hook(self._adding(layer, alpha / rank))

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Both factors of each layer, as `double_blocks.0.img_attn.qkv.lora_A`."""
        return {
            f"{layer}.{name}": self.factors[entry(layer, name)]
            for layer in self.shape
            for name in (A, B)
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the transformer computes without it."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def _adding(self, layer: str, scale: float) -> Callable[..., Tensor | None]:
        keys = entry(layer, A), entry(layer, B)

        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
            if self._off:
                return None
            (x,), (down, up) = args, (self.factors[key] for key in keys)
            low = F.linear(x, down.to(x.dtype)) * scale
            return out + F.linear(low, up.to(low.dtype))

        return hook

    @torch.no_grad()
    def load(self, lora: Lora) -> tuple[str, ...]:
        """Go on from a LoRA; the layers that it says nothing of, which stay as they are.

        CheckpointError lists what of it cannot be trained here: other layers and models, what is
        not low-rank, and ranks above ours.
        """
        changes, faults = self._changes(lora)
        if faults:
            reason = "not a LoRA of the layers and ranks that are trained"
            raise CheckpointError(lora.where, unexpected=faults, reason=reason)
        for layer, change in changes.items():
            rank, alpha = self.shape[layer]
            down, up = (self.factors[entry(layer, name)] for name in (A, B))
            down[: change.rank] = change.down_RC.to(down)
            up.zero_()  # beyond its rank nothing is said yet
            up[:, : change.rank] = (change.up_OR.float() * (change.scale / (alpha / rank))).to(up)
        return tuple(layer for layer in self.shape if layer not in changes)

    def _changes(self, lora: Lora) -> tuple[dict[str, LowRank], list[str]]:
        """Of each layer of ours one change, and all that stands in the way."""
        changes: dict[str, LowRank] = {}
        faults: list[str] = []
        for (role, layer, parameter), parts in lora.targets.items():
            names = ", ".join(part.name or layer for part in parts)
            if role != "dit" or parameter != "weight" or layer not in self.shape:
                faults.append(f"{names} (not trained)")
            elif not all(part.plain for part in parts):
                kinds = {type(part.change).__name__ for part in parts if not part.plain}
                faults.append(f"{names} (not low-rank: {', '.join(sorted(kinds))})")
            else:
                change = one_change(parts, linear_layers(self.spec)[layer][0])
                rank, _ = self.shape[layer]
                if change.rank > rank:
                    faults.append(f"{names} (has rank {change.rank}, trained is {rank})")
                changes[layer] = change
        return changes, faults

    def lora(self, tensors: Mapping[str, Tensor] | None = None, where: str = "trained") -> Lora:
        """What was trained, or these tensors of the same names, on the host, to be written."""
        held: Mapping[str, Tensor] = self.trainable if tensors is None else tensors
        parts = []
        for layer, (_, alpha) in self.shape.items():
            down, up = (held[f"{layer}.{name}"].detach().float().cpu().clone() for name in (A, B))
            size = linear_layers(self.spec)[layer]
            place = Place("dit", layer, ((0, size[0]),), size)
            parts.append(Part(place, "weight", LowRank(down, up, alpha), None, layer))
        return Lora(where, tuple(sorted(parts, key=lambda part: part.target)), Sizes(self.spec))


def entry(layer: str, name: str) -> str:
    """A key for a module's dictionary, which cannot have dots."""
    return f"{layer}.{name}".replace(".", "/")


def one_change(parts: Sequence[Part], rows: int) -> LowRank:
    """All parts of one layer as one change of its whole weight.

    Parts that were cut from one layer have the same down factor: then the rank is theirs, not
    their sum.
    """
    ranges = [
        (part.change, rows_of(part, rows)) for part in parts if isinstance(part.change, LowRank)
    ]
    first = ranges[0][0]
    if [there for _, there in ranges] == [((0, rows),)]:
        return first
    if all(torch.equal(c.down_RC, first.down_RC) for c, _ in ranges):
        up_OR = torch.zeros(rows, first.rank)
        for change, there in ranges:
            scatter(up_OR, change.up_OR.float() * change.scale, there)
        return LowRank(first.down_RC.float(), up_OR, float(first.rank))
    return stacked(ranges, rows)
