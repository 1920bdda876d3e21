"""Memory that was freed: it stays with the process for the next chunk, where this process is nett's own, until it is
given back between one part of the work and the next."""

from __future__ import annotations

from functools import cache

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
LARGEST = 16 << 20  # bytes of a block that is taken from the heap; chunks are smaller
KEPT = 64 << 20  # bytes of free memory at the end of a heap that are not given back


@cache
def keep_freed() -> None:
    """glibc gives freed blocks of a chunk's size back to the system at once, and each new one then costs a page fault
    every 4 KB: a third of the system's share of a merge. Where the C library is another, nothing happens."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """Give the system what was freed and lies between what is in use. Where the C library is not glibc, nothing happens."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
