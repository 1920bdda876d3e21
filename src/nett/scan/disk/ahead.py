"""Reading a little of many files: a disk that is asked for one piece after the other waits most of the time.

While what is read lies in the cache, nothing else happens. At the first piece that does not, the disk is told of what
will be read of this file and the next ones, so that it has many requests to work on and in an order of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import final

from nett.scan.disk.items import Item

FILES = 48  # that the disk is told of at once
_NOW = getattr(os, "RWF_NOWAIT", 0)

Ranges = Iterable[tuple[int, int]]  # (offset, bytes) in a file


@final
class Ahead:
    """Reads of ``items`` in order; ``ranges`` tells what will be read of one."""

    def __init__(self, items: Sequence[Item], ranges: Callable[[Item], Ranges]) -> None:
        self._items, self._ranges = items, ranges
        self._told = 0  # the disk knows of all items before this one

    def read(self, fd: int, view: memoryview, offset: int, number: int) -> int:
        """As ``os.preadv`` of item ``number``, of which ``fd`` is open."""
        try:
            got = os.preadv(fd, [view], offset, _NOW)
        except OSError:  # not in the cache, or the file system cannot tell
            got = -1
        if got == len(view):
            return got
        self._tell(fd, number)
        return os.preadv(fd, [view], offset)

    def _tell(self, fd: int, number: int) -> None:
        if number >= self._told:
            _will_need(fd, self._ranges(self._items[number]))
            self._told = number + 1
        if self._told - number > FILES // 2:
            return
        for item in self._items[self._told : number + 1 + FILES]:
            try:
                other = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:  # said when its turn comes
                continue
            try:
                _will_need(other, self._ranges(item))
            finally:
                os.close(other)
        self._told = min(len(self._items), number + 1 + FILES)


def _will_need(fd: int, ranges: Ranges) -> None:
    try:
        for offset, count in ranges:
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)
    except OSError:  # a pipe, or a file system without: reading tells what there is
        pass
