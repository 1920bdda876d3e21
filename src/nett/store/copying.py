"""Bytes of one open file into another, holes left as holes."""

from __future__ import annotations

import errno
import hashlib
import os

from nett.store.handle import BLOCK, NotLinked


def copy_bytes(source: int, target: int, size: int) -> str:
    """Write the bytes of one open file into another, holes left as holes; returns their sha256.

    Not copy_file_range, which on file systems with reflinks would share the blocks again.
    """
    digest, at, zeros = hashlib.sha256(), 0, bytes(BLOCK)
    os.ftruncate(target, size)
    while at < size:
        start, stop = _data(source, at, size)
        for place in range(at, start, BLOCK):
            digest.update(zeros[: min(BLOCK, start - place)])
        for place in range(start, stop, BLOCK):
            block = os.pread(source, min(BLOCK, stop - place), place)
            if len(block) != min(BLOCK, stop - place):
                raise NotLinked("has changed while it was read")
            digest.update(block)
            written = 0
            while written < len(block):
                written += os.pwrite(target, memoryview(block)[written:], place + written)
        at = stop
    return digest.hexdigest()


def _data(fd: int, at: int, size: int) -> tuple[int, int]:
    """(start, end) of the next data at or after ``at``; (size, size) where only a hole is left."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))
    except OSError as error:
        return (size, size) if error.errno == errno.ENXIO else (at, size)  # only a hole is left; cannot be asked
