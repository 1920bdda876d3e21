"""What the system keeps of files in memory beside the program: dropped, and counted (Linux; elsewhere neither)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def drop(file: Path, *, written: bool = False) -> None:
    """Ask the system to forget a file, as if it had not been read: all of it, since the system reads ahead. ``written``: put
    it on the disk before, for what was just written and is not there yet is never forgotten."""
    if not hasattr(os, "posix_fadvise"):
        return
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if written:
            os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def cached_bytes(file: Path) -> int | None:
    """Bytes of a file that lie in the system's page cache; None where that cannot be known."""
    size = file.stat().st_size
    if not size:
        return 0
    try:
        call = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError):
        return None
    page = mmap.PAGESIZE
    pages = -(-size // page)
    found = (ctypes.c_ubyte * pages)()
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mmap.mmap(fd, size, access=mmap.ACCESS_COPY) as mapped:  # private: nothing is written, or touched
            start = ctypes.c_char.from_buffer(mapped)
            failed = call(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
            del start
    finally:
        os.close(fd)
    return None if failed else sum(b & 1 for b in found) * page
