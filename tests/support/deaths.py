"""At which write steps a crash test lets its work die: some of every kind in the default run, all in the slow one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

PLACING = 8  # the last steps put the output in its place

every_step = pytest.mark.parametrize("dense", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])


def deaths(kinds: Sequence[str], *, every: int, offset: int = 0, dense: bool = False) -> list[int]:
    """Of steps of these kinds, which to die at: each ``every``-th from ``offset`` on, the first and the last of each
    kind, and the last few; or all of them. Tests with several cases give each its own offset, so that together they
    die at more moments than one does."""
    if dense:
        return list(range(len(kinds)))
    first = {kind: step for step, kind in reversed(list(enumerate(kinds)))}
    last = {kind: step for step, kind in enumerate(kinds)}
    end = range(max(0, len(kinds) - PLACING), len(kinds))
    return sorted({0, *range(offset, len(kinds), every), *first.values(), *last.values(), *end})
