"""TIES of mergekit's meaning in float64, in plain NumPy from the formula; and how far an output is from it.

Compared away from ties only: which of several equal entries are kept is a matter of taste. Differences are equal
for this purpose if they are in bfloat16, since mergekit subtracts in the type that it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.checkpoint import Checkpoint, open_checkpoint

Array = np.ndarray[Any, np.dtype[Any]]


def values(checkpoint: Checkpoint, name: str) -> Array:
    """A tensor in float64; bfloat16 is the upper half of a float32."""
    raw = checkpoint.read(name)
    if checkpoint.tensors[name].dtype.name == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float64)


def as_bfloat16(x: Array) -> Array:
    """Bits of |x| rounded to bfloat16, nearest even."""
    bits = np.abs(x).astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def ties(base: Array, tuned: Sequence[Array], density: float) -> tuple[Array, Array]:
    """The merged tensor, and where no model is at its threshold."""
    clear = np.ones(base.size, np.bool_)
    trimmed = []
    for model in tuned:
        delta = model - base
        kept = max(1, int(density * delta.size))
        threshold = np.partition(np.abs(delta), delta.size - kept)[delta.size - kept]
        clear &= as_bfloat16(delta) != as_bfloat16(np.asarray([threshold]))
        trimmed.append(np.where(np.abs(delta) > threshold, delta, 0.0))
    sign = np.where(sum(trimmed) >= 0, 1.0, -1.0)
    agreeing = [np.where(np.sign(d) == sign, d, 0.0) for d in trimmed]
    count = sum((d != 0).astype(np.float64) for d in agreeing)
    return base + sum(agreeing) / np.maximum(count, 1), clear


def errors(base: Path, tuned: Sequence[Path], density: float, outputs: Sequence[Path]) -> tuple[list[float], float]:
    """Root mean square error of each output, and the share of elements that were compared."""
    total, compared, size = [0.0] * len(outputs), 0, 0
    start, others, made = (
        open_checkpoint(base),
        [open_checkpoint(t) for t in tuned],
        [open_checkpoint(o) for o in outputs],
    )
    try:
        for name, info in start.tensors.items():
            expected, clear = ties(values(start, name), [values(t, name) for t in others], density)
            for i, output in enumerate(made):
                total[i] += float(np.square(values(output, name)[clear] - expected[clear]).sum())
            compared, size = compared + int(clear.sum()), size + info.size
        return [(t / compared) ** 0.5 for t in total], compared / size
    finally:
        for checkpoint in (start, *others, *made):
            checkpoint.close()
