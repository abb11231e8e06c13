"""The host's memory, kept by a process that computes there.

A C library gives large blocks back to the system when they are freed, and each pass over a
transformer's blocks asks for them again: every page of them is then cleared by the system anew.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of mallopt's, in glibc's malloc.h
KEPT = 2**31 - 1  # bytes that stay with the process when they are free; the most that it takes


def keep_freed() -> bool:
    """Keep up to `KEPT` bytes that are freed for what is asked for next, in this process from now
    on; whether this system knows how."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_MAX, 0))
