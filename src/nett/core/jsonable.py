"""Results as JSON can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any


def jsonable(value: Any) -> Any:
    """``value`` with null for the numbers that JSON has not (NaN and infinity), at any depth."""
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value
