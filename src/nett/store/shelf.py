"""The objects of a store, read through everything that they rest on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import final

import numpy as np

from nett.core.codec import BLOCK
from nett.core.dtypes import Array
from nett.core.errors import NettError, ProofFailed
from nett.store.objects import DEEPEST, StoredObject, object_path

_OPEN = 64  # objects that are held open


@final
class Shelf:
    """The objects below ``root``; safe to be read from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, StoredObject] = {}
        self._lock = threading.Lock()
        self._own = threading.local()  # scratch of each thread

    def has(self, digest: str) -> bool:
        return object_path(self.root, digest).is_file()

    def opened(self, digest: str) -> StoredObject:
        with self._lock:
            found = self._open.get(digest)
            if found is None:
                if len(self._open) >= _OPEN:  # those that readers are at stay alive through their references
                    self._open.pop(next(iter(self._open)))
                found = self._open[digest] = StoredObject(self.root, digest)
            return found

    def forget(self, digest: str) -> None:
        """Open an object anew when it is next asked for: it has been written anew."""
        with self._lock:
            self._open.pop(digest, None)

    def is_whole(self, digest: str) -> bool:
        """Whether an object and all that it rests on are there, by their headers."""
        try:
            self.chain(digest)
        except NettError:
            return False
        return True

    def chain(self, digest: str) -> list[StoredObject]:
        """An object and what it rests on, one behind the other. ProofFailed where one is missing or does not fit."""
        for _ in range(2):
            try:
                return self._chain(digest)
            except ProofFailed as error:  # it was open while collection wrote it anew and took its old base away?
                wrong = error
                self.forget(digest)
        raise wrong

    def _chain(self, digest: str) -> list[StoredObject]:
        found = [self.opened(digest)]
        while found[-1].mode.needs_base:
            try:
                base = self.opened(str(found[-1].base))
            except ProofFailed:
                self.forget(found[-1].digest)
                raise
            if base.nbytes != found[0].nbytes:
                raise ProofFailed("rests on a base of another size", where=found[0].path)
            if len(found) > 2 * DEEPEST:
                raise ProofFailed("rests on itself, over others", where=found[0].path)
            found.append(base)
        return found

    def block(self, digest: str, index: int, out: Array | None = None) -> Array:
        """Block ``index`` of an object, decoded, with all the bases that it rests on; into ``out`` if that is given."""
        chain = self.chain(digest)
        count = min(BLOCK, chain[0].nbytes - index * BLOCK)
        if out is None:
            out = np.empty(count, np.uint8)
        base: Array | None = None
        for depth in range(len(chain) - 1, -1, -1):
            found = self._scratch(depth % 2)[:count] if depth else out
            chain[depth].decode(index, base, found, self._scratch(2))
            base = found
        return out

    def _scratch(self, which: int) -> Array:
        """One of three blocks of a thread, two to decode bases into and one to read into: new memory each time would
        cost more than to fill it."""
        if not hasattr(self._own, "blocks"):
            self._own.blocks = np.empty((3, BLOCK), np.uint8)
        return self._own.blocks[which]  # type: ignore[no-any-return]

    def read(self, digest: str, offset: int, count: int, out: Array | None = None) -> Array:
        """Bytes ``offset:offset + count`` of what an object holds; into ``out`` if that is given."""
        if out is None:
            out = np.empty(count, np.uint8)
        whole = self.opened(digest).nbytes
        done = 0
        while done < count:
            index, inside = divmod(offset + done, BLOCK)
            take = min(count - done, min(BLOCK, whole - index * BLOCK) - inside)
            if take <= 0:
                raise ProofFailed(f"holds {whole:,} bytes, {offset + count:,} are needed", where=digest)
            if inside == 0 and take == min(BLOCK, whole - index * BLOCK):
                self.block(digest, index, out[done : done + take])
            else:
                out[done : done + take] = self.block(digest, index)[inside : inside + take]
            done += take
        return out

    def close(self) -> None:
        for stored in self._open.values():
            stored.close()
        self._open.clear()
