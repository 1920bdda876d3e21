"""numba's ``njit`` with our settings and a type that mypy keeps: GIL released, compiled code cached on disk.

numba is imported when a kernel is first called and not before: it takes longer to import than scanning a small
checkpoint does. A kernel may call kernels of its own file (of others, the cache would not see that they changed).
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
    made: list[Any] = []

    def compiled() -> Any:
        if not made:
            import numba

            bare = _bare(function)
            try:
                made.append(numba.njit(nogil=True, cache=True, error_model="numpy")(bare))
            except RuntimeError:  # neither the package's folder nor the user's cache can be written
                made.append(numba.njit(nogil=True, error_model="numpy")(bare))
        return made[0]

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if not made:
            kernel = compiled()
            if OWN_PROCESS and _BLAS not in sys.modules:
                # numba's first compilation looks for scipy's BLAS, which takes half as long as numba itself.
                sys.modules[_BLAS] = None  # type: ignore[assignment]
                try:
                    return kernel(*arguments)
                finally:
                    sys.modules.pop(_BLAS, None)
        return made[0](*arguments)

    call.compiled = compiled  # type: ignore[attr-defined]
    return cast(F, call)


def _bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the type checkers that tests put around, which numba cannot compile through, and with the
    kernels that it calls as numba knows them."""
    import inspect
    import types

    found = inspect.unwrap(function)
    code, known = found.__code__, found.__globals__
    called = {n: known[n].compiled() for n in code.co_names if hasattr(known.get(n), "compiled")}
    return types.FunctionType(code, {**known, **called}, found.__name__) if called else found
