"""Which of the engine's weights are on the card, phase by phase.

A phase's resident units come in on the copy stream and are waited for where they are first
needed; the others pass through the ring while they are called. Weights have their home on the
host and are dropped from the card, never copied back. Models know nothing of it: forward hooks
on the modules that need a unit bring it before they run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from flux_engine.vram.card import Card
from flux_engine.vram.planner import Stage
from flux_engine.vram.ring import Ring
from flux_engine.vram.seats import Seat
from flux_engine.vram.units import Kind
from flux_engine.vram.weights import Images, Weights


class Residency(Weights):
    """Who is on the card, of models by name. Without a card models compute where they are.

    `limit` is in bytes. Models `on_disk` are read anew whenever they come.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        card: Card | None = None,
        *,
        images: Images | None = None,
        limit: float = math.inf,
        on_disk: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(models, card, images, on_disk)
        self.limit = limit
        self.ring = Ring(card) if card else None
        self._hooks = [
            hook
            for seats in self._seats.values()
            for seat in seats
            for module in seat.unit.modules
            for hook in self._hooked(seat, module)
        ]

    def _hooked(self, seat: Seat, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(self._before(seat))
        if seat.unit.kind == "block":
            yield module.register_forward_hook(self._after(seat))

    def leave(self) -> None:
        """Send everybody home, and let go of the models."""
        self.vacate()
        for hook in self._hooks:
            hook.remove()

    def _before(self, seat: Seat) -> Any:
        def before(*_: Any) -> None:
            assert self.card is not None
            assert self.ring is not None
            if seat.here is None:
                if self.ring.over(seat):
                    self._begin([seat.model], seat.unit.kind, 1)
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

    def keep_within(self, limit: float, stage: Stage) -> None:
        """The phase that goes on becomes this one, and no more than `limit` is used from now on."""
        self.limit = limit
        self.quiet()
        with self.phase(stage):
            pass

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
    def loop(
        self, models: str | Sequence[str], passes: float, kind: Kind = "block"
    ) -> Iterator[None]:
        """Inside, the models' blocks (or the makers of their tables) are called so many times over,
        one model's after the other's."""
        self._begin([models] if isinstance(models, str) else models, kind, passes)
        try:
            yield
        finally:
            if self.ring is not None:
                self.ring.finish()

    def _begin(self, models: Sequence[str], kind: Kind, passes: float) -> None:
        seats = [seat for model in models for seat in self._seats.get(model, [])]
        loads = [seat for seat in seats if seat.unit.kind == kind and seat.here is None]
        if loads and self.ring is not None:
            self.ring.begin(loads, passes)

    def streams(self, model: str, kind: Kind) -> bool:
        """Whether weights of this kind pass through the ring, as things are."""
        seats = self._seats.get(model, [])
        return any(seat.unit.kind == kind and seat.here is None for seat in seats)

    def quiet(self) -> None:
        if self.ring is not None:
            self.ring.finish()

    def vacate(self) -> None:
        """Send everybody home."""
        if self.card is not None and self.ring is not None:
            self._drop_ring()
            for seat in self._here():
                seat.send_home(self.card)
