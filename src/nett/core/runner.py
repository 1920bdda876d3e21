"""Work on two or more threads, results in order, never more in flight than the threads can chew."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar, final

from nett.core import jit
from nett.core.heap import keep_freed

_WITH_BLAS = {"numpy", "scipy", "scipy.linalg", "torch", "sklearn", "faiss"}
T = TypeVar("T")
R = TypeVar("R")


def thread_count(asked: int) -> int:
    """``asked``, or for 0 what this process may use, at most 8: the work is bound by memory and disk."""
    return asked if asked > 0 else min(8, len(os.sched_getaffinity(0)))


@cache
def _blas(loaded: frozenset[str]) -> Any:
    """The BLAS libraries of this process. Finding them takes milliseconds, so it is done again only when something that
    brings one was imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@final
class Pool:
    """Threads for NumPy and numba work, which let go of the interpreter's lock.

    While it is open, BLAS works on the thread that calls it: a pool of its own beneath each of ours fights for the
    same cores (measured: five times the CPU seconds for the singular values of a model, the more the busier the
    machine), and its sums would depend on the number of threads.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        if jit.OWN_PROCESS:
            keep_freed()
        self._blas = _blas(frozenset(_WITH_BLAS & sys.modules.keys())).limit(limits=1, user_api="blas")
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="nett") if threads > 1 else None

    def ordered(self, work: Callable[[T], R], items: Iterable[T], ahead: int = 2) -> Iterator[R]:
        """``map`` in the items' order, at most ``threads * ahead`` results waiting."""
        if self._executor is None:
            yield from map(work, items)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(waiting) >= self.threads * ahead:
                    yield waiting.popleft().result()
                waiting.append(self._executor.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._blas.restore_original_limits()
