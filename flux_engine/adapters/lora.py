"""LoRAs on the engine: beside the weights, row by row, or merged into a copy of them.

A row wears its LoRAs, and rows that wear others may share a micro-batch: where all are low-rank
and act on the same layers at the same ranks, each row of a product has factors of its own, and
its bits do not depend on its neighbours. What is not low-rank is merged: a changed copy of the
weights takes the place of the stored ones as long as such rows are computed. Stored weights never
change, so that taking a LoRA off is exact.

Shape letters: G rows of a product (both sides of guidance), K outfits in a micro-batch, L tokens
(or steps), C columns, O rows of a weight, R rank.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from flux_engine.batching import NOTHING_WORN, Worn
from flux_engine.errors import CheckpointError, RequestError, SettingError, SourceError
from flux_engine.request import GenerationRequest, LoraUse
from flux_engine.vram.residency import Residency
from flux_engine.weights.lora.changes import LowRank, stacked
from flux_engine.weights.lora.file import Lora, full_delta, rows_of
from flux_engine.weights.lora.models import Models
from flux_engine.weights.lora.names import Role
from flux_engine.weights.lora.report import Matched, report
from flux_engine.weights.lora.shelf import SHELF_BYTES, Shelf

Factors = dict[str, tuple[Tensor, Tensor]]  # of each layer: down (R, C), up (O, R); or with K
MAKERS = re.compile(r"^(time|vector|guidance)_in\.|_mod\.lin$|\.modulation\.lin$|\.adaLN_")
ENCODERS: tuple[Role, ...] = ("clip", "t5")
PARTLY = "partly"  # in force: what is to be restored before anything else


@dataclass(frozen=True, eq=False)
class Outfit:
    """What a row wears: LoRAs, how strongly, and whether they are merged into the weights."""

    loras: tuple[tuple[Lora, float], ...] = ()
    merged: bool = False

    @cached_property
    def key(self) -> str:
        """Says which LoRAs at which scales; empty for none."""
        return told(f"{lora.digest} {scale}" for lora, scale in self.loras)

    @cached_property
    def text_key(self) -> str:
        """The same for what changes the text encoders."""
        return told(f"{lora.digest} {s}" for lora, s in self.loras if any(lora.of(*ENCODERS)))

    @cached_property
    def kind(self) -> str:
        """Rows of one kind can share a micro-batch, whatever they wear."""
        if not any(any(lora.of("dit")) for lora, _ in self.loras):
            return ""
        if self.merged:
            return f"merged {self.key}"
        return "beside " + told(f"{layer} {rank}" for layer, rank in sorted(self.ranks.items()))

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Of each layer of the transformer, over all LoRAs."""
        out: dict[str, int] = {}
        for lora, _ in self.loras:
            for part in lora.of("dit"):
                assert isinstance(part.change, LowRank)
                layer = part.place.module
                out[layer] = out.get(layer, 0) + part.change.rank
        return out


BARE = Outfit()


@dataclass(frozen=True)
class Standing:
    """Factors on the device, of each layer with those of all outfits in one tensor."""

    keys: tuple[str, ...] = ()
    factors: Factors = field(default_factory=dict)


def told(facts: Iterable[str]) -> str:
    text = "\n".join(facts)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


class Loras:
    """All that an engine knows of LoRAs: those at hand, and which are in force."""

    def __init__(
        self, models: Models, device: torch.device, dtype: torch.dtype, limit: int = SHELF_BYTES
    ) -> None:
        self.models, self.device, self.dtype = models, device, dtype
        self.shelf = Shelf(models.sizes, limit)
        self._in_force: dict[Role, str] = {}
        self._prepared: dict[str, Factors] = {}  # of the outfits worn last, on the host
        self._standing = Standing()
        self._layers = {
            name: module
            for name, module in models.dit.named_modules()
            if isinstance(module, nn.Linear)
        }

    def outfit(self, request: GenerationRequest) -> Outfit:
        """What a row wears; RequestError if a LoRA of its cannot be had or used."""
        if not request.loras:
            return BARE
        try:
            return self._outfit(request.loras)
        except (SourceError, CheckpointError, SettingError) as error:
            raise RequestError(str(error)) from None

    def _outfit(self, uses: Sequence[LoraUse]) -> Outfit:
        worn, merged = [], False
        for use in uses:
            lora = self.shelf.take(use)
            self.models.names(lora)
            if use.merged is False and not lora.plain:
                raise SettingError(
                    f"{use.name}: is not low-rank alone, so it has to be merged (merged: false)"
                )
            merged |= use.merged is True or not lora.plain
            if use.scale != 0.0:
                worn.append((lora, use.scale))
        return Outfit(tuple(worn), merged)

    def describe(self, use: LoraUse, residency: Residency) -> list[Matched]:
        """What it matches in the models, and ‖ΔW‖ against ‖W‖ of each parameter.

        SourceError, CheckpointError or SettingError if it cannot be used.
        """
        self._outfit([use])
        lora = self.shelf.take(use)
        names = self.models.names(lora)
        return report(
            lora, {target: residency.stored(target[0], name) for target, name in names.items()}
        )

    def apart(self, requests: Mapping[int, GenerationRequest]) -> Iterator[list[int]]:
        """Rows in groups whose LoRAs are at hand together, so that each is read once."""
        by_uses: dict[tuple[LoraUse, ...], list[int]] = {}
        for i, request in requests.items():
            by_uses.setdefault(request.loras, []).append(i)
        group: list[int] = []
        files: dict[str, int] = {}
        for uses, rows in by_uses.items():
            new = {use.name: self._size(use) for use in uses if use.name not in files}
            if group and sum(files.values()) + sum(new.values()) > self.shelf.limit:
                yield group
                group, files = [], {}
                new = {use.name: self._size(use) for use in uses}
            group += rows
            files |= new
        yield group

    def _size(self, use: LoraUse) -> int:
        try:
            return self.shelf.file(use).stat().st_size
        except (SourceError, SettingError, OSError):
            return 0  # whoever takes it will say what is wrong

    @contextmanager
    def beside(self, outfits: Sequence[Outfit], sides: int) -> Iterator[None]:
        """Inside, the transformer's layers add what each row of a micro-batch wears.

        The rows come `sides` times over: prompts, then negative prompts.
        """
        if not outfits or not outfits[0].kind.startswith("beside"):
            yield
            return
        distinct = {outfit.key: outfit for outfit in outfits}
        self._stand(distinct)
        number = {key: k for k, key in enumerate(distinct)}
        rows = torch.tensor([number[outfit.key] for outfit in outfits] * sides).to(self.device)
        hooks = []
        try:
            for layer, (down_KRC, up_KOR) in self._standing.factors.items():
                hook = adding(down_KRC, up_KOR, rows, table=bool(MAKERS.search(layer)))
                hooks.append(self._layers[layer].register_forward_hook(hook))
            yield
        finally:
            for handle in hooks:
                handle.remove()

    @contextmanager
    def bucket(self) -> Iterator[None]:
        """What stands on the device for a micro-batch stays for the next ones, until this ends."""
        try:
            yield
        finally:
            self._standing = Standing()

    def _stand(self, distinct: Mapping[str, Outfit]) -> None:
        """Bring what these outfits add; what stood before goes first, so that one set is there."""
        if tuple(distinct) == self._standing.keys:
            return
        self._standing = Standing()
        known = self._prepared
        self._prepared = {key: known.get(key) or self._factors(o) for key, o in distinct.items()}
        ones = list(self._prepared.values())
        factors = {
            layer: (
                torch.stack([one[layer][0] for one in ones]).to(self.device),
                torch.stack([one[layer][1] for one in ones]).to(self.device),
            )
            for layer in ones[0]
        }
        self._standing = Standing(tuple(distinct), factors)

    def worn(self, outfits: Iterable[Outfit]) -> Worn:
        """What outfits of one kind take when they are in one micro-batch."""
        distinct = {outfit.key: outfit for outfit in outfits}
        first = next(iter(distinct.values()))
        if not first.kind.startswith("beside"):
            return NOTHING_WORN
        layers = {name: self._layers[name] for name in first.ranks}
        pairs = [
            (rank * layers[name].in_features, rank * layers[name].out_features)
            for name, rank in first.ranks.items()
        ]
        return Worn(
            factors=sum(down + up for down, up in pairs),
            gathered=max(max(pair) for pair in pairs),
            outfits=len(distinct),
        )

    def _factors(self, outfit: Outfit) -> Factors:
        """Of each layer, all of an outfit's LoRAs as one pair on the host, with their scales in
        `up`."""
        pairs: dict[str, list[LowRank]] = {}
        for lora, scale in outfit.loras:
            for (role, layer, _), parts in lora.targets.items():
                if role != "dit":
                    continue
                count = self._layers[layer].out_features
                ranges = [(part.change, rows_of(part, count)) for part in parts]
                one = stacked(ranges, count)  # type: ignore[arg-type]
                scaled = LowRank(one.down_RC, one.up_OR * scale, one.alpha)
                pairs.setdefault(layer, []).append(scaled)
        return {
            layer: (
                torch.cat([one.down_RC for one in ones]).to(self.dtype),
                torch.cat([one.up_OR for one in ones], 1).to(self.dtype),
            )
            for layer, ones in pairs.items()
        }

    def merge(self, outfit: Outfit, residency: Residency) -> None:
        """Let the transformer compute with a merged outfit's weights, and otherwise with its own.

        It stays so until another call.
        """
        self._put_in_force(outfit if outfit.merged else BARE, residency, ("dit",))

    def merge_text(self, outfit: Outfit, residency: Residency) -> None:
        """The same for the text encoders, whose LoRAs are always merged."""
        self._put_in_force(outfit, residency, ENCODERS)

    def _put_in_force(self, outfit: Outfit, residency: Residency, roles: tuple[Role, ...]) -> None:
        for role in roles:
            tensors = self._changed(outfit, residency, role)
            key = outfit.key if tensors else ""
            if self._in_force.get(role, "") == key:
                continue
            if self._in_force.get(role, ""):
                residency.restore(role)
            self._in_force[role] = ""
            if tensors:
                self._in_force[role] = PARTLY
                for names in residency.by_unit(role, tensors):  # not all of them at once
                    residency.override(role, {name: tensors[name]() for name in names})
            self._in_force[role] = key

    def _changed(
        self, outfit: Outfit, residency: Residency, role: Role
    ) -> dict[str, Callable[[], Tensor]]:
        """How each parameter that an outfit changes is made: stored + Σ scale · ΔW in float32."""
        worn: dict[str, list[tuple[Lora, Any, float]]] = {}
        for lora, scale in outfit.loras:
            for target, name in self.models.names(lora).items():
                if target[0] == role:
                    worn.setdefault(name, []).append((lora, target, scale))

        def make(name: str) -> Tensor:
            stored = residency.stored(role, name)
            base = changed = stored.float()
            for lora, target, scale in worn[name]:
                changed = changed + scale * full_delta(lora.targets[target], base)
            return changed.to(stored.dtype)

        return {name: lambda name=name: make(name) for name in worn}  # type: ignore[misc]


def adding(
    down_KRC: Tensor, up_KOR: Tensor, rows_G: Tensor, *, table: bool
) -> Callable[..., Tensor]:
    """A hook that adds each row's own (x · downᵀ) · upᵀ to what a layer says.

    A layer that makes the modulation `table` gets steps × rows, any other one rows × tokens,
    flat or not. The factors are gathered even where all rows wear the same, so that bits never
    depend on it.
    """
    flat = "(L G) {0}" if table else "(G L) {0}"

    def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        (x,) = args
        is_flat = x.dim() == 2
        x_GLC = rearrange(x, f"{flat.format('C')} -> G L C", G=len(rows_G)) if is_flat else x
        low_GLR = torch.bmm(x_GLC, down_KRC[rows_G].mT)
        change = torch.bmm(low_GLR, up_KOR[rows_G].mT)
        # in place, because the sum of the widest layer would be the largest thing there is
        return out.add_(rearrange(change, f"G L O -> {flat.format('O')}") if is_flat else change)

    return hook
