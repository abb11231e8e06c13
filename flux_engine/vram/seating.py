"""Which of the hoisted models' blocks stay on the card, how many slots the others pass through.

A step takes as long as its computing, or as the copies of the blocks that are not there. What
memory a batch leaves keeps blocks: the heaviest first, spread evenly, because a light block hides
the copy of its neighbour.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flux_engine.vram.estimates import (
    Machine,
    Sizes,
    Weights,
    Work,
    of_all,
    of_kind,
    row_seconds,
    working_bytes,
)

K = TypeVar("K", bound=Hashable)

BATCHES = (1, 2, 4, 8, 16)
SLOTS = (2, 3, 4)
WORTH = 0.98  # a larger batch or ring has to save more than the rest of it


def step_seconds(
    copies: Sequence[int], compute: Sequence[float], slots: int, link: float, steps: int = 4
) -> float:
    """Of a step in the steady state; a block whose copy is 0 bytes is on the card already."""
    copied = computed = 0.0
    free = [0.0] * max(slots, 1)
    ends, turn = [0.0], 0
    for _ in range(steps):
        for nbytes, seconds in zip(copies, compute, strict=True):
            if nbytes:
                slot = turn % slots
                copied = max(copied, free[slot]) + nbytes / link
                computed = max(computed, copied) + seconds
                free[slot] = computed
                turn += 1
            else:
                computed += seconds
        ends.append(computed)
    return (ends[-1] - ends[1]) / (steps - 1)


def kept(units: Mapping[K, int], room: int) -> frozenset[K]:
    """Units that stay in `room` bytes: the heaviest kind first, spread evenly over their run."""
    out: set[K] = set()
    for size in sorted(set(units.values()), reverse=True):
        names = [name for name, nbytes in units.items() if nbytes == size]
        count = min(len(names), max(0, room) // size if size else len(names))
        out |= {names[i * len(names) // count] for i in range(count)}
        room -= count * size
    return frozenset(out)


@dataclass(frozen=True, kw_only=True)
class Seating:
    """One way to hold the hoisted models: what stays (by model and unit), how many slots, what a
    step takes."""

    batch: int
    stays: frozenset[tuple[str, str]]
    slots: int
    slot: int
    seconds: float
    copied: int
    working: int
    weights: int  # bytes of what stays

    @property
    def nbytes(self) -> int:
        return self.weights + self.slots * self.slot + self.working

    def of(self, model: str) -> frozenset[str]:
        """What stays of one of them."""
        return frozenset(unit for owner, unit in self.stays if owner == model)


def seatings(
    machine: Machine,
    weights: Weights,
    work: Work,
    sizes: Sizes,
    batches: Iterable[int],
    *,
    passing: frozenset[str] = frozenset(),
) -> list[Seating]:
    """Every way that fits; of models that are `passing` no block stays."""
    blocks, tables = (of_all(weights, work.hoisted, kind) for kind in ("block", "table"))
    rest = sum(of_all(weights, work.hoisted, "rest").values())
    rows = row_seconds(machine, work, sizes, weights)
    share = {model: rows[model] / len(of_kind(weights, model, "block")) for model in rows}
    free = {unit: n for unit, n in blocks.items() if unit[0] not in passing}
    makers = {unit: n for unit, n in tables.items() if unit[0] not in passing}
    out = []
    for batch in batches:
        each = [batch * share[model] for model, _ in blocks]
        working = working_bytes(work, sizes, batch)
        for slots in (0, *SLOTS):
            room = machine.memory - rest - working
            largest = max((*blocks.values(), *tables.values())) if slots else 0
            room -= slots * largest
            stays = kept(free, room)
            spare = room - sum(blocks[unit] for unit in stays)
            if spare >= sum(makers.values()):
                stays |= frozenset(makers)  # called once a micro-batch: last to stay
            streamed = (set(blocks) | set(tables)) - stays
            if room < 0 or (streamed and not slots) or (slots and not streamed):
                continue
            copies = [0 if unit in stays else nbytes for unit, nbytes in blocks.items()]
            out.append(
                Seating(
                    batch=batch,
                    stays=stays,
                    slots=slots,
                    slot=largest,
                    seconds=step_seconds(copies, each, slots, machine.link),
                    copied=sum(copies),
                    working=working,
                    weights=rest + sum((blocks | tables)[unit] for unit in stays),
                )
            )
    return out


def best(found: Sequence[Seating]) -> Seating:
    """The least time a picture; of nearly equal ones the smallest batch, then the smallest ring."""
    fastest = min(one.seconds / one.batch for one in found)
    good = [one for one in found if one.seconds / one.batch * WORTH <= fastest]
    return min(good, key=lambda one: (one.batch, one.slots))
