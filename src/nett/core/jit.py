"""numba's ``njit`` with our settings and a type that mypy keeps: GIL released, compiled code cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compile on first call; ``fastmath`` stays off, since the same bytes must come out everywhere."""
    import numba

    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
