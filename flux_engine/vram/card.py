"""A card: memory of its own, and a stream of copies into it that runs beside the computing.

Marks are points in either stream. Whoever computes waits for a copy's mark, and a copy for the
mark of the computing that used its target before; the thread that gives the orders waits for
neither, and `host_waits` counts where it had to.
"""

import logging
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Mark = Any  # of a card's own kind
Said = tuple[str, str]


class Card(Protocol):
    """What a ring and a residency need. `copies` and `copied` (bytes) only count upwards."""

    device: torch.device
    copies: int
    copied: int
    host_waits: int
    log: list[Said] | None

    def room(self, nbytes: int) -> Tensor:
        """Memory of the card, as bytes."""

    def pin(self, flat: Tensor) -> Tensor:
        """These bytes of the host, where copies need not wait for them."""

    def copy(self, name: str, to: Tensor, source: Tensor, after: Mark) -> Mark:
        """Order a copy into the card, behind those ordered before and behind `after`."""

    def mark(self) -> Mark:
        """Behind all computing that has been ordered so far."""

    def wait(self, name: str, mark: Mark) -> None:
        """Computing that is ordered from now on comes behind `mark`."""


class Counted:
    """The counters of any card."""

    def __init__(self) -> None:
        self.copies = self.copied = self.host_waits = 0
        self.log: list[Said] | None = None

    def say(self, what: str, name: str) -> None:
        if self.log is not None:
            self.log.append((what, name))

    def count(self, name: str, nbytes: int) -> None:
        self.copies += 1
        self.copied += nbytes
        self.say("copy", name)


class HostCard(Counted):
    """A card made of host memory, whose copy stream is a thread that works through a queue.

    Computing on a host is done when its call returns: a mark of it has passed once it is made, and
    waiting for a copy is the computing's own waiting. `delay` is called before each copy.
    """

    def __init__(self, delay: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self._queue = ThreadPoolExecutor(1, "copies")
        self._delay = delay

    @torch.inference_mode(mode=False)
    def room(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)  # NaN, should anybody read too early

    def pin(self, flat: Tensor) -> Tensor:
        return flat

    def copy(self, name: str, to: Tensor, source: Tensor, after: Mark) -> Mark:
        assert after is None or after == "passed"
        self.count(name, source.nbytes)
        return self._queue.submit(self._copy, to, source)

    def _copy(self, to: Tensor, source: Tensor) -> None:
        self._delay()
        to.copy_(source)

    def mark(self) -> Mark:
        self.say("mark", "")
        return "passed"

    def wait(self, name: str, mark: Mark) -> None:
        self.say("wait", name)
        if isinstance(mark, Future):
            mark.result()


class CudaCard(Counted):
    """A GPU with a copy stream. Pages that cannot be pinned go through two pinned buffers, which
    a thread fills: then the computing waits for a disk, and so does who orders it."""

    STAGES = 2

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._reader = ThreadPoolExecutor(1, "disk")
        self._staging: list[tuple[Tensor, torch.cuda.Event]] = []
        self._copying = False
        self._locked: list[Tensor] = []
        # memory that is freed while it is locked would be taken for locked ever after
        weakref.finalize(self, _unlock, self._locked, device).atexit = False

    @torch.inference_mode(mode=False)
    def room(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pin(self, flat: Tensor) -> Tensor:
        """The same memory, locked as long as this card is there; a locked copy where the system
        does not lock it."""
        if flat.is_pinned() or not flat.nbytes:
            return flat
        if int(_runtime().cudaHostRegister(flat.data_ptr(), flat.nbytes, 0)) == 0:
            self._locked.append(flat)
            return flat
        self._forget_fault()
        if not self._copying:
            logger.warning("the system does not lock the weights' pages: they are copied")
        self._copying = True
        return flat.pin_memory()

    def _forget_fault(self) -> None:
        """A refused call is remembered by the driver, and told to the next kernel's launch."""
        try:
            torch.zeros(1, device=self.device)
        except RuntimeError as fault:
            logger.debug("forgotten", extra={"fault": str(fault)})

    def copy(self, name: str, to: Tensor, source: Tensor, after: Mark) -> Mark:
        self.count(name, source.nbytes)
        if source.is_pinned():
            return self._order(to, source, after)
        return self._reader.submit(self._staged, to, source, after)

    def _order(self, to: Tensor, source: Tensor, after: Mark) -> torch.cuda.Event:
        with torch.cuda.stream(self.stream):
            if after is not None:
                self.stream.wait_event(after)
            to.copy_(source, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self.stream)
        return event

    def _staged(self, to: Tensor, source: Tensor, after: Mark) -> torch.cuda.Event:
        """In the reader's thread, which may wait."""
        if len(self._staging) < self.STAGES:
            buffer, used = torch.empty(0, dtype=torch.uint8), self.mark()
        else:
            buffer, used = self._staging.pop(0)
        used.synchronize()
        if len(buffer) < len(source):
            buffer = torch.empty(len(source), dtype=torch.uint8, pin_memory=True)
        buffer[: len(source)].copy_(source)
        event = self._order(to, buffer[: len(source)], after)
        self._staging.append((buffer, event))
        return event

    def mark(self) -> Mark:
        self.say("mark", "")
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, name: str, mark: Mark) -> None:
        self.say("wait", name)
        if isinstance(mark, Future):
            self.host_waits += not mark.done()
            mark = mark.result()
        torch.cuda.current_stream(self.device).wait_event(mark)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _unlock(locked: list[Tensor], device: torch.device) -> None:
    torch.cuda.synchronize(device)
    for flat in locked:
        _runtime().cudaHostUnregister(flat.data_ptr())
    locked.clear()
