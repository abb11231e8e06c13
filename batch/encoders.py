"""Threads that turn pixels into picture files beside the card, and never hold it up.

Pixels wait in memory up to a bound. What comes beyond it, in the burst of a chunk that is decoded
at once or where the threads are slower than the card, waits on the worker's disk in 8 bits, which
is what files are made of. That ends by itself: a worker has two shards in its hands at most.
"""

import logging
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from flux_engine.pictures import to_image

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 2
WAITING_BYTES = 256 * 2**20  # of pixels in memory that no thread has finished with


class Encoders:
    """Work on pictures in threads; who brings pixels (3, H, W) never waits for it."""

    def __init__(self, threads: int = THREADS, waiting_bytes: int = WAITING_BYTES) -> None:
        self._pool = ThreadPoolExecutor(threads, "encoder")
        self._free = self._most = waiting_bytes
        self._lock = threading.Lock()
        self.spilled = 0  # pictures that waited on the disk

    def submit(self, pixels: Tensor, work: Callable[[Image.Image], T]) -> Future[T]:
        """Do `work` on the picture."""
        size = min(pixels.nbytes, self._most)  # one that is larger than all goes alone
        if not self._taken(size):
            spilled = self._spilled(pixels)
            if spilled is not None:
                return self._pool.submit(lambda: work(spilled()))
            size = 0  # the disk is full: memory beyond the bound is what is left
        future = self._pool.submit(lambda: work(to_image(pixels)))
        future.add_done_callback(lambda _: self._release(size))
        return future

    def _taken(self, size: int) -> bool:
        with self._lock:
            fits = self._free >= size
            self._free -= size if fits else 0
        return fits

    def _release(self, size: int) -> None:
        with self._lock:
            self._free += size

    def _spilled(self, pixels: Tensor) -> Callable[[], Image.Image] | None:
        """Reads the picture back, once; None if it could not be written."""
        levels = np.asarray(to_image(pixels))
        file = tempfile.TemporaryFile(prefix="fluxmill-")  # noqa: SIM115  closed when it is read
        try:
            file.write(levels.tobytes())
            file.flush()
        except OSError as error:
            file.close()
            logger.warning("pictures wait in memory", extra={"why": str(error)})
            return None
        self.spilled += 1
        shape = levels.shape

        def read() -> Image.Image:
            with file:
                file.seek(0)
                flat = np.frombuffer(file.read(), dtype=np.uint8)
            return Image.fromarray(flat.reshape(shape))

        return read
