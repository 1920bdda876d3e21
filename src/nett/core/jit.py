"""numba's ``njit`` with our settings and a type that mypy keeps: GIL released, compiled code cached on disk.

numba is imported when a kernel is first called and not before: it takes longer to import than scanning a small
checkpoint does. A kernel must therefore not call another one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
_BLAS = "scipy.linalg.cython_blas"
OWN_PROCESS = False  # set by the command line: nobody else's numba code runs here


def jit(function: F) -> F:
    """Compile on first call; ``fastmath`` stays off, since the same bytes must come out everywhere."""
    compiled: list[Any] = []

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if not compiled:
            import inspect

            import numba

            bare = inspect.unwrap(function)  # numba cannot compile through the type checkers that tests put around
            try:
                compiled.append(numba.njit(nogil=True, cache=True, error_model="numpy")(bare))
            except RuntimeError:  # neither the package's folder nor the user's cache can be written
                compiled.append(numba.njit(nogil=True, error_model="numpy")(bare))
            if OWN_PROCESS and _BLAS not in sys.modules:
                # numba's first compilation looks for scipy's BLAS, which takes half as long as numba itself.
                sys.modules[_BLAS] = None  # type: ignore[assignment]
                try:
                    return compiled[0](*arguments)
                finally:
                    sys.modules.pop(_BLAS, None)
        return compiled[0](*arguments)

    return cast(F, call)
