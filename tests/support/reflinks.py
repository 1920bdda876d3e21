"""A file system with reflinks, played by one that has none: a clone is a copy, and who shares with whom is noted."""

from __future__ import annotations

import os
from typing import Any, final


@final
class FakeReflinks:
    """Stands in for the kernel's calls in :mod:`nett.store.sharing`. ``in_place``: whether it offers FIDEDUPERANGE."""

    def __init__(self, *, in_place: bool = False) -> None:
        self.in_place = in_place
        self._family: dict[int, int] = {}  # inode -> the first of those that it shares with
        self.clones = 0

    def install(self, sharing: Any, put: Any = setattr) -> FakeReflinks:
        for name in ("clone", "deduplicate", "share_blocks"):
            put(sharing, name, getattr(self, name))
        return self

    def _note(self, target: int, source: int) -> None:
        if os.fstat(target).st_nlink == 0:  # only to try: the number is soon another file's
            return
        first = os.fstat(source).st_ino
        self._family[os.fstat(target).st_ino] = self._family.get(first, first)

    def clone(self, target: int, source: int) -> None:
        at, size = 0, os.fstat(source).st_size
        while at < size:
            at += os.pwrite(target, os.pread(source, 1 << 20, at), at)
        self.clones += 1
        self._note(target, source)

    def deduplicate(self, target: int, source: int, size: int) -> bool:
        if self.in_place:
            assert os.pread(target, size, 0) == os.pread(source, size, 0)
            self._note(target, source)
        return self.in_place

    def share_blocks(self, one: int, other: int) -> bool:
        a, b = os.fstat(one).st_ino, os.fstat(other).st_ino
        return self._family.get(a, a) == self._family.get(b, b)
