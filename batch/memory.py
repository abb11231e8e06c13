"""Large blocks of memory go back to the system as soon as they are freed.

Without this a worker that has written a shard of large pictures keeps hundreds of MB that nobody
uses: the C library and Arrow's own allocator hold on to them for later.
"""

import ctypes
from contextlib import suppress

import pyarrow as pa

M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE = 2**20  # bytes


def keep_no_large_blocks() -> None:
    """For this process; where the C library has no such setting, only Arrow's part."""
    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
