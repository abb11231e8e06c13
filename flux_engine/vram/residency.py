"""Which of the engine's weights are on the card, phase by phase.

A phase's resident units come in on the copy stream and are waited for where they are first
needed; the others pass through the ring while they are called. Weights have their home on the
host and are dropped from the card, never copied back. Models know nothing of it: forward hooks
on the modules that need a unit bring it before they run.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flux_engine.errors import SettingError
from flux_engine.vram.card import Card
from flux_engine.vram.planner import Stage
from flux_engine.vram.ring import Ring
from flux_engine.vram.seats import Seat
from flux_engine.vram.store import Image, in_memory
from flux_engine.vram.units import Kind, Unit, named_tensors, units_of

Images = Mapping[str, Mapping[str, Image]]


class Residency:
    """Models by name, their weights' home, and what of them is on the card now.

    Without a card models compute where they are. `limit` is in bytes.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        card: Card | None = None,
        *,
        images: Images | None = None,
        limit: float = math.inf,
    ) -> None:
        self.models = dict(models)
        self.card, self.limit = card, limit
        self._seats: dict[str, list[Seat]] = {}
        self._instead: dict[str, dict[str, Tensor]] = {name: {} for name in self.models}
        self._plain: dict[str, dict[str, Tensor]] = {}
        for name, model in self.models.items():
            if card is None:
                self._plain[name] = {key: t.data for key, t in named_tensors(model).items()}
            else:
                units = units_of(model)
                self._seats[name] = self._seated(name, units, (images or {}).get(name), card)
        self.ring = Ring(card) if card else None

    def _seated(
        self, name: str, units: list[Unit], images: Mapping[str, Image] | None, card: Card
    ) -> list[Seat]:
        images = images or in_memory(units)
        seats = []
        for unit in units:
            image = images[unit.name]
            pinned = Image(image.unit, image.layout, card.pin(image.flat))
            seat = Seat(name, unit, pinned)
            seats.append(seat)
            for module in unit.modules:
                module.register_forward_pre_hook(self._before(seat))
                if unit.kind == "block":
                    module.register_forward_hook(self._after(seat))
        return seats

    def _before(self, seat: Seat) -> Any:
        def before(*_: Any) -> None:
            assert self.card is not None
            assert self.ring is not None
            if seat.here is None:
                if self.ring.over(seat):
                    self._begin(seat.model, seat.unit.kind, 1)
                self.ring.acquire(seat)
            else:
                seat.arrived(self.card)

        return before

    def _after(self, seat: Seat) -> Any:
        def after(*_: Any) -> None:
            assert self.ring is not None
            if seat.here is None:
                self.ring.release(seat)

        return after

    def sizes(self) -> dict[str, dict[str, tuple[Kind, int]]]:
        """Kind and bytes of every unit of every model, in order."""
        return {
            name: {seat.unit.name: (seat.unit.kind, seat.nbytes) for seat in seats}
            for name, seats in self._seats.items()
        }

    @property
    def used(self) -> int:
        """Bytes of weights on the card."""
        ring = sum(len(slot.flat) for slot in self.ring.slots) if self.ring else 0
        return ring + sum(seat.nbytes for seat in self._here())

    def _here(self) -> list[Seat]:
        return [seat for seats in self._seats.values() for seat in seats if seat.here is not None]

    @contextmanager
    def phase(self, stage: Stage | None, following: Stage | None = None) -> Iterator[None]:
        """Inside, the stage's models can be called; leaving sends nobody away.

        What `following` will need comes in beside it, as far as there is room. None: the phase
        that goes on is served already.
        """
        if self.card is not None and stage is not None:
            self._enter(stage)
            for seat in self._wanted(following) if following else []:
                if self.used + seat.nbytes + stage.working > self.limit:
                    break
                if seat.here is None:
                    seat.bring(self.card)
        yield

    def _wanted(self, stage: Stage) -> list[Seat]:
        """Units that a stage has resident, those that are needed at once first."""
        seats = [seat for name in stage.models for seat in self._seats[name]]
        wanted = [
            s for s in seats if s.unit.kind == "rest" or s.unit.name in stage.resident[s.model]
        ]
        return sorted(wanted, key=lambda seat: seat.unit.kind != "rest")

    def _enter(self, stage: Stage) -> None:
        assert self.card is not None
        wanted = self._wanted(stage)
        others = [s for name in stage.models for s in self._seats[name] if s not in wanted]
        for seat in others:
            if seat.here is not None:
                seat.send_home(self.card)
        slot = max((seat.nbytes for seat in others), default=0)
        coming = sum(seat.nbytes for seat in wanted if seat.here is None)
        self._make_room(stage, set(wanted), coming, slot)
        for seat in wanted:
            if seat.here is None:
                seat.bring(self.card)
            if seat.unit.kind == "rest":
                seat.arrived(self.card)

    def _make_room(self, stage: Stage, wanted: set[Seat], coming: int, slot: int) -> None:
        """For what comes, and slots of so many bytes; a ring that fits stays as it is."""
        assert self.ring is not None
        assert self.card is not None
        slots = stage.slots if slot else 0
        now = self.ring.slots
        serves = len(now) == slots and (not now or len(now[0].flat) >= slot)
        if slots and not serves:
            self._drop_ring()
        more = coming + stage.working + (0 if serves else slots * slot)
        if not slots and self.used + more > self.limit:
            self._drop_ring()
        for seat in self._here():
            if self.used + more <= self.limit:
                break
            if seat not in wanted:
                seat.send_home(self.card)
        if slots and not serves:
            self.ring.resize(slots, slot)

    def _drop_ring(self) -> None:
        assert self.ring is not None
        self.ring.resize(0, 0)
        for seats in self._seats.values():
            for seat in seats:
                if seat.here is None:
                    seat.forget()

    @contextmanager
    def loop(self, model: str, passes: float, kind: Kind = "block") -> Iterator[None]:
        """Inside, the model's blocks (or the makers of its table) are called so many times over."""
        self._begin(model, kind, passes)
        try:
            yield
        finally:
            if self.ring is not None:
                self.ring.finish()

    def _begin(self, model: str, kind: Kind, passes: float) -> None:
        seats = self._seats.get(model, [])
        loads = [seat for seat in seats if seat.unit.kind == kind and seat.here is None]
        if loads and self.ring is not None:
            self.ring.begin(loads, passes)

    def streams(self, model: str, kind: Kind) -> bool:
        """Whether weights of this kind pass through the ring, as things are."""
        seats = self._seats.get(model, [])
        return any(seat.unit.kind == kind and seat.here is None for seat in seats)

    def override(self, model: str, tensors: Mapping[str, Tensor]) -> None:
        """Host tensors, by parameter name, that take the stored ones' place until `restore`.

        The stored ones are not changed. SettingError for names, shapes or types that differ.
        """
        known = named_tensors(self.models[model])
        faults = [
            f"{key} ({_words(tensor)} for {_words(known[key])})" if key in known else key
            for key, tensor in tensors.items()
            if key not in known or _words(tensor) != _words(known[key])
        ]
        if faults:
            raise SettingError(f"{model} has no such weights: {', '.join(sorted(faults))}")
        self._instead[model].update(tensors)
        self._renew(model, tensors)

    def restore(self, model: str) -> None:
        """The stored weights again, bit for bit."""
        gone, self._instead[model] = self._instead[model], {}
        self._renew(model, gone)

    def stored(self, model: str, key: str) -> Tensor:
        """A stored parameter by name, on the host, whatever is in force."""
        if self.card is None:
            return self._plain[model][key]
        seat = self._seat_of(model, key)
        return seat.stored.layout.views(seat.stored.flat)[key]

    def _seat_of(self, model: str, key: str) -> Seat:
        return next(seat for seat in self._seats[model] if key in seat.unit.tensors)

    def _renew(self, model: str, keys: Mapping[str, Tensor]) -> None:
        instead = self._instead[model]
        if self.card is None:
            tensors = named_tensors(self.models[model])
            for key in keys:
                tensors[key].data = instead.get(key, self._plain[model][key])
            return
        assert self.ring is not None
        self.ring.finish()
        for seat in {self._seat_of(model, key) for key in keys}:
            changed = {key: instead[key] for key in seat.unit.tensors if key in instead}
            seat.change(changed or None, self.card)


def _words(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
