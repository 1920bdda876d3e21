"""What the system keeps of files in memory beside the program: dropped, and counted (Linux; elsewhere neither)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from nett.core.checkpoint import TensorInfo


def drop(file: Path, offset: int = 0, length: int = 0) -> None:
    """Ask the system to forget a range of a file (length 0: to its end), as if it had not been read."""
    if not hasattr(os, "posix_fadvise"):
        return
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def drop_tensor(info: TensorInfo, part: int = 0, parts: int = 1) -> None:
    """The bytes of a tensor, or of one of its equal ``parts``; nothing where they do not lie plainly in a file."""
    if info.file is not None:
        size = info.nbytes // parts
        drop(info.file, info.offset + part * size, size)


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
