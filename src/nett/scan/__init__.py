"""What is redundant in an asset, what removing it would free, at what risk, and the command for it.

One probe a kind of redundancy. `nett scan PATH` runs all of them over checkpoints, shares the reading between
them, and ranks what they find; `nett scan PATH --only PROBE` runs one.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        module = importlib.import_module(f"nett.scan.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module 'nett.scan' has no attribute {name!r}") from error
    return getattr(module, name, module)
