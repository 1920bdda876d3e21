"""Rules of the operations that move axes and positions: reshape, transpose, slice, concatenate, pad."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nett.core.dtypes import Array
from nett.core.symmetry.atoms import CONSTANT, Axis
from nett.core.symmetry.trace import Trace, Traced, tensors_in


def reshaped(trace: Trace, result: Any, x: Traced, *_: Any, **__: Any) -> Any:
    """Axes merged and split. Channels times positions become runs; two axes that move cannot be one."""
    old, new = list(x.value.shape), list(result.shape)
    axes: list[Axis] = [None] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        a, b = i + 1, j + 1
        while True:
            left, right = int(np.prod(old[i:a])), int(np.prod(new[j:b]))
            if left == right:
                break
            if left < right:
                a += 1
            else:
                b += 1
        _merge(trace, x.axes[i:a], old[i:a], axes, j, new[j:b])
        i, j = a, b
    return Traced(result, axes)


def _merge(trace: Trace, axes: list[Axis], old: list[int], into: list[Axis], at: int, new: list[int]) -> None:
    moving = [a for a, axis in enumerate(axes) if axis is not None and old[a] > 1]
    if not moving:
        return
    if len(moving) > 1:
        for a in moving:
            trace.atoms.pin(axes[a])
        return
    axis, a = axes[moving[0]], moving[0]
    assert axis is not None
    whole = np.broadcast_to(axis.reshape([-1 if d == a else 1 for d in range(len(old))]), old).reshape(new)
    for d in range(len(new)):  # does it depend on one of the new axes only?
        line = np.moveaxis(whole, d, 0).reshape(new[d], -1)
        if new[d] > 1 and np.all(line == line[:, :1]):
            into[at + d] = axis if np.array_equal(line[:, 0], axis) else trace.atoms.see(line[:, 0].copy())
            return
    trace.atoms.pin(axis)


def permuted(trace: Trace, result: Any, x: Traced, *order: Any, dims: Any = None, **_: Any) -> Any:
    order = dims or (order[0] if len(order) == 1 and not isinstance(order[0], int) else order)
    return Traced(result, [x.axes[d] for d in order])


def swapped(
    trace: Trace,
    result: Any,
    x: Traced,
    one: int = 0,
    other: int = 1,
    *,
    dim0: int | None = None,
    dim1: int | None = None,
) -> Any:
    one, other = one if dim0 is None else dim0, other if dim1 is None else dim1
    axes = list(x.axes)
    if len(axes) > 1:
        axes[one], axes[other] = axes[other], axes[one]
    return Traced(result, axes)


def unsqueezed(trace: Trace, result: Any, x: Traced, dim: int) -> Any:
    axes = list(x.axes)
    axes.insert(dim % result.dim(), None)
    return Traced(result, axes)


def squeezed(trace: Trace, result: Any, x: Traced, dim: Any = None) -> Any:
    asked = range(x.value.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    gone = {d % x.value.dim() for d in asked}
    return Traced(result, [axis for d, axis in enumerate(x.axes) if d not in gone or x.value.shape[d] != 1])


def expanded(trace: Trace, result: Any, x: Traced, *_: Any, **__: Any) -> Any:
    axes: list[Axis] = [None] * (result.dim() - x.value.dim())
    for axis, before, after in zip(x.axes, x.value.shape, result.shape[len(axes) :], strict=True):
        axes.append(axis if before == after else None)
    return Traced(result, axes)


def joined(trace: Trace, result: Any, parts: Any, dim: int = 0, *, axis: int | None = None) -> Any:
    """Concatenation: along ``dim`` the units follow each other, the other axes are tied."""
    dim = (dim if axis is None else axis) % result.dim()
    tensors = tensors_in(parts)
    axes: list[Axis] = []
    for d in range(result.dim()):
        if d != dim:
            found = tensors[0].axes[d]
            for t in tensors[1:]:
                if found is not None or t.axes[d] is not None:
                    found = trace.atoms.tie(found, t.axes[d])
            axes.append(found)
        elif all(t.axes[d] is None for t in tensors):
            axes.append(None)
        else:
            pieces = [_atoms(trace, t, d) for t in tensors]
            axes.append(trace.atoms.see(np.concatenate(pieces)))
    return Traced(result, axes)


def _atoms(trace: Trace, t: Traced, d: int) -> Array:
    axis = t.axes[d]
    if axis is None:
        constant = bool(torch.all(t.value == t.value.flatten()[0])) if t.value.numel() and t.owned is None else False
        if constant and not torch.any(t.value):
            return np.full(t.value.shape[d], CONSTANT)
        axis = trace.atoms.fresh(t.value.shape[d])
        trace.atoms.pin(axis)
    return axis


def stacked(trace: Trace, result: Any, parts: Any, dim: int = 0) -> Any:
    tensors = tensors_in(parts)
    axes = list(tensors[0].axes)
    for t in tensors[1:]:
        for d in range(len(axes)):
            if axes[d] is not None or t.axes[d] is not None:
                axes[d] = trace.atoms.tie(axes[d], t.axes[d])
    axes.insert(dim % result.dim(), None)
    return Traced(result, axes)


def taken(trace: Trace, result: Any, x: Any, index: Any = None) -> Any:
    """Indexing with numbers, slices, None and an ellipsis."""
    if not isinstance(x, Traced):
        return x[index] if isinstance(x, list | tuple | dict) else result
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(p, int | slice | type(None) | type(Ellipsis)) for p in parts):
        trace.stop("indexing with a tensor", (x, index))
        return None
    used = sum(isinstance(p, int | slice) for p in parts)
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    at = parts.index(Ellipsis)
    parts[at : at + 1] = [slice(None)] * (x.value.dim() - used)
    axes: list[Axis] = []
    d = 0
    for part in parts:
        if part is None:
            axes.append(None)
            continue
        axis = x.axes[d]
        d += 1
        if isinstance(part, int):
            if axis is not None:
                trace.atoms.see(axis[part : part + 1 or None])
                trace.atoms.pin(axis[part : part + 1 or None])
        elif axis is None or part == slice(None):
            axes.append(axis)
        else:
            axes.append(trace.atoms.see(axis[part]))
    return Traced(result, axes)


def split(trace: Trace, result: Any, x: Traced, _sizes: Any, dim: int = 0, **more: Any) -> Any:
    """chunk and split: slices that follow each other."""
    dim = more.get("dim", dim) % x.value.dim()
    found, start = [], 0
    for piece in result:
        axes, stop = list(x.axes), start + piece.shape[dim]
        axis = x.axes[dim]
        axes[dim] = None if axis is None else trace.atoms.see(axis[start:stop])
        found.append(Traced(piece, axes))
        start = stop
    return tuple(found)


def narrowed(trace: Trace, result: Any, x: Traced, dim: int, start: int, length: int) -> Any:
    index = [slice(None)] * x.value.dim()
    index[dim] = slice(start, start + length)
    return taken(trace, result, x, tuple(index))


def gated(trace: Trace, result: Any, x: Traced, dim: int = -1) -> Any:
    """GLU: the first half times the sigmoid of the second."""
    axes, axis = list(x.axes), x.axes[dim]
    if axis is not None:
        half = len(axis) // 2
        axes[dim] = trace.atoms.tie(trace.atoms.see(axis[:half]), trace.atoms.see(axis[half:]))
        trace.atoms.passed("glu", axes[dim])
    return Traced(result, axes)


def padded(trace: Trace, result: Any, x: Traced, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Padding; along an axis that moves, only with a constant."""
    axes = list(x.axes)
    sizes = list(pad)
    for k in range(len(sizes) // 2):
        d = x.value.dim() - 1 - k
        before, after = int(sizes[2 * k]), int(sizes[2 * k + 1])
        axis = axes[d]
        if axis is None or (before, after) == (0, 0):
            continue
        if mode != "constant":
            trace.atoms.pin(axis)
            axes[d] = None
            continue
        axis = axis[max(0, -before) : len(axis) - max(0, -after)]
        ends = [np.full(max(0, n), CONSTANT) for n in (before, after)]
        axes[d] = trace.atoms.see(np.concatenate([ends[0], axis, ends[1]]))
    return Traced(result, axes)


RULES: dict[str, Any] = {
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "viewas", "reshapeas"), reshaped),
    **dict.fromkeys(("permute",), permuted),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t"), swapped),
    "unsqueeze": unsqueezed,
    "squeeze": squeezed,
    **dict.fromkeys(("expand", "expandas"), expanded),
    **dict.fromkeys(("cat", "concat", "concatenate"), joined),
    "stack": stacked,
    "getitem": taken,
    **dict.fromkeys(("chunk", "split", "tensorsplit"), split),
    "narrow": narrowed,
    "pad": padded,
    "glu": gated,
}
