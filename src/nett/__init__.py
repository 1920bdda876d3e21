"""nett: what is left when everything that need not be there has been taken off.

Every room is reached as an attribute (``nett.merge.ties(base, tuned, density=0.2)``) and imported on first use,
so that ``import nett`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "cache", "convert", "experts", "lake", "load", "merge", "scan", "store", "weights"]

if TYPE_CHECKING:
    from nett import cache, experts, lake, merge, scan, store, weights
    from nett.core.convert import convert
    from nett.core.load import load


def __getattr__(name: str) -> Any:
    if name in ("convert", "load"):
        return getattr(importlib.import_module(f"nett.core.{name}"), name)
    if name in ("cache", "experts", "lake", "merge", "scan", "store", "weights"):
        return importlib.import_module(f"nett.{name}")
    raise AttributeError(f"module 'nett' has no attribute {name!r}")
