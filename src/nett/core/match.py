"""Names of tensors: patterns over them, and the layer a name belongs to."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from nett.core.errors import UsageError, did_you_mean

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|blk)\.(\d+)\.")


def layer_number(name: str) -> int | None:
    """``model.layers.12.mlp.up_proj.weight`` -> 12; None for tensors outside the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a shell pattern matches; a pattern that matches none is an error."""
    known = list(names)
    found = fnmatch.filter(known, pattern)
    if not found:
        raise UsageError(f"the pattern {pattern!r} matches no tensor.{did_you_mean(pattern, known[:200])}")
    return found
