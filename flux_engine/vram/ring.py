"""Slots on a card that blocks pass through: while one is computed, the next ones are copied in.

The order of a pass is known, so a copy is ordered as soon as its slot is free, past the end of a
pass into the next one as well. Nobody is waited for but by streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from torch import Tensor

from flux_engine.vram.card import Card, Mark


class Load(Protocol):
    """What passes through: bytes on the host, and what to do where they have arrived."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Tensor: ...

    def show(self, flat: Tensor) -> None:
        """Let the model see its weights in these bytes."""

    def hide(self) -> None:
        """Let the model see its weights at home again."""


@dataclass
class Slot:
    """Memory for one load, and behind which mark it may be written to."""

    flat: Tensor
    free: Mark


@dataclass
class Ring:
    """At most one programme at a time: some loads in order, so many times over."""

    card: Card
    slots: list[Slot] = field(default_factory=list)
    loads: Sequence[Load] = ()
    total: float = 0  # copies of the programme
    ordered: int = 0
    at: int = 0  # which of them is computed, or comes next
    held: Load | None = None
    coming: dict[int, Mark] = field(default_factory=dict)

    def resize(self, slots: int, nbytes: int) -> None:
        """So many slots of so many bytes; the old ones are given up."""
        self.finish()
        if (len(self.slots), len(self.slots[0].flat) if self.slots else 0) == (slots, nbytes):
            return
        self.slots.clear()
        rooms = [self.card.room(nbytes) for _ in range(slots)]
        self.slots = [Slot(flat, self.card.mark()) for flat in rooms]

    def begin(self, loads: Sequence[Load], passes: float = inf) -> None:
        """Order the first copies of a programme."""
        self.finish()
        assert self.slots, "a ring without slots"
        self.loads, self.total = loads, len(loads) * passes
        self.ordered = self.at = 0
        while self.ordered < min(len(self.slots), self.total):
            self._order()

    def _order(self) -> None:
        load, slot = self._pair(self.ordered)
        source = load.source  # asked for once: it may be made for the asking
        self.coming[self.ordered] = self.card.copy(
            load.name, slot.flat[: len(source)], source, slot.free
        )
        self.ordered += 1

    def _pair(self, number: int) -> tuple[Load, Slot]:
        return self.loads[number % len(self.loads)], self.slots[number % len(self.slots)]

    def over(self, load: Load) -> bool:
        """Whether nothing is left of the programme once what is computed now is done."""
        done = self.at + (self.held is not None)
        return self.held is not load and done >= self.total

    def acquire(self, load: Load) -> None:
        """Computing that is ordered next finds this load in its slot; the one before is done."""
        if self.held is load:
            return
        if self.held is not None:
            self.release(self.held)
        expected = self._pair(self.at)[0] if self.at < self.total else None
        if expected is not load:
            raise RuntimeError(
                f"{load.name} is called and {expected.name if expected else 'nothing'} is due: "
                "streamed blocks run in their order"
            )
        self.card.wait(load.name, self.coming.pop(self.at))
        load.show(self._pair(self.at)[1].flat)
        self.held = load

    def release(self, load: Load) -> None:
        """What is ordered so far was the last that needed this load."""
        if self.held is not load:
            return
        self._free()
        if self.ordered < self.total:
            self._order()

    def _free(self) -> None:
        self._pair(self.at)[1].free = self.card.mark()
        self.held = None
        self.at += 1

    def finish(self) -> None:
        """End the programme, wherever it is: copies that are under way come to nothing."""
        if self.held is not None:
            self._free()
        for number, mark in self.coming.items():
            self.card.wait(self._pair(number)[0].name, mark)
            self._pair(number)[1].free = self.card.mark()
        self.coming.clear()
        for load in self.loads:
            load.hide()
        self.loads, self.total = (), 0
