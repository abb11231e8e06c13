"""Threads that turn pixels into picture files beside the card, with a bound on what waits."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREADS = 2
WAITING_BYTES = 256 * 2**20  # of pixels that no thread has finished with


class Encoders:
    """Work on pixels in threads; whoever brings more than may wait is held up."""

    def __init__(self, threads: int = THREADS, waiting_bytes: int = WAITING_BYTES) -> None:
        self._pool = ThreadPoolExecutor(threads, "encoder")
        self._free = waiting_bytes
        self._most = waiting_bytes
        self._changed = threading.Condition()

    def submit(self, size: int, work: Callable[[], T]) -> Future[T]:
        """Do `work`, which holds `size` bytes until it is done."""
        size = min(size, self._most)  # one that is larger than all goes alone
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._release(size))
        return future

    def _release(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()
