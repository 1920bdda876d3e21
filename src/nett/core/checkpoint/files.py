"""Reading byte ranges of files from many threads: ``pread`` into memory of our own.

Not mmap: a file that shrinks under a mapping kills the process, a short read is an error that can be told.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import NettError, Refused


@final
class FileReader:
    """One file, opened on first use; ``read_into`` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._lock = threading.Lock()

    def _descriptor(self) -> int:
        if self._fd < 0:
            with self._lock:
                if self._fd < 0:
                    try:
                        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                    except OSError as error:
                        raise Refused(f"cannot be opened: {error.strerror}", where=self.path) from error
        return self._fd

    def read(self, offset: int, count: int, raw: str) -> Array:
        """``count`` elements of NumPy type ``raw`` from byte ``offset`` on."""
        out = np.empty(count, dtype=raw)
        self.read_into(out.view(np.uint8), offset)
        return out

    def read_into(self, target: Array, offset: int) -> None:
        """Fill ``target`` (bytes, 1-D) from byte ``offset`` on."""
        view = target.data
        done = 0
        while done < len(view):
            got = os.preadv(self._descriptor(), [view[done:]], offset + done)
            if got == 0:
                raise NettError(
                    f"ends at byte {offset + done}, {len(view) - done} bytes short: it changed while being read",
                    where=self.path,
                )
            done += got

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
