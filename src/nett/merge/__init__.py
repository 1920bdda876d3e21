"""Many checkpoints become one.

Give a base model and fine-tunes of it (or a mergekit recipe); get one checkpoint that loads like any of them.
Start with `nett merge ties` or, to keep every task's accuracy at the price of a second file, `nett merge tall_masks`.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return getattr(importlib.import_module(f"nett.merge.{name}"), name, None) or importlib.import_module(
            f"nett.merge.{name}"
        )
    except ModuleNotFoundError as error:
        raise AttributeError(f"module 'nett.merge' has no attribute {name!r}") from error
