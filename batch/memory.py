"""Memory that was freed goes back to the system.

Without this a worker that has written a shard of large pictures keeps hundreds of MB that nobody
uses: the C library and Arrow's own allocator hold on to them for later.
"""

import ctypes
from contextlib import suppress

import pyarrow as pa


def give_back() -> None:
    """What this process has freed and still holds; costs a few ms. Where the C library has no such
    call, only Arrow's part."""
    pa.default_memory_pool().release_unused()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
