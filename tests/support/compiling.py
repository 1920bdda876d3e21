"""Each kernel is compiled once in a run: the process that needs it first compiles it, others wait and load what it saved.

On a fresh checkout every worker and every forge would compile the same kernels side by side otherwise.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_held: set[str] = set()


@contextmanager
def _alone(file: str) -> Iterator[None]:
    """No other process of the run compiles anything of this source file. Kernels call kernels of their own file only,
    so nobody waits for a second file while he holds one."""
    if file in _held:
        yield
        return
    fd = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _held.add(file)
        yield
    finally:
        _held.discard(file)
        os.close(fd)


def one_at_a_time() -> None:
    """Make this process wait its turn with numba."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.dispatcher import Dispatcher

    real = Dispatcher.compile

    def compile(self: Any, sig: Any) -> Any:
        with global_compiler_lock, _alone(self.py_func.__code__.co_filename):
            return real(self, sig)

    Dispatcher.compile = compile
