"""What operations do to the units of their axes: one rule a kind, by the operation's name without underscores.

A rule takes the trace, the operation's result on the example and its arguments, and gives the result with its
axes. Those of torch.nn's layers are in :mod:`nett.core.symmetry.module_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nett.core.symmetry import shaping
from nett.core.symmetry.atoms import Axis
from nett.core.symmetry.trace import Trace, Traced, tensors_in

UNARY = (
    "relu", "relu6", "leakyrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh",
    "softplus", "softsign", "tanh", "sigmoid", "logsigmoid", "softmax", "logsoftmax", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alphadropout", "featurealphadropout", "identity", "contiguous", "clone", "detach",
    "float", "double", "half", "to", "type", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "clamp", "clip",
    "sin", "cos", "erf", "reciprocal", "threshold", "normalize",
)  # fmt: skip
_BINARY = (
    "add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "truediv", "itruediv", "div", "maximum",
    "minimum", "max", "min", "pow", "where",
)  # fmt: skip
_REDUCED = ("mean", "sum", "amax", "amin", "std", "var", "norm", "logsumexp", "any", "all", "prod")
_NEW = ("zeros", "ones", "full", "empty", "zeroslike", "oneslike", "newzeros", "newones", "arange")
POOLED = [
    f"{kind}{n}d" for kind in ("maxpool", "avgpool", "adaptiveavgpool", "adaptivemaxpool", "lppool") for n in "123"
]
POOLED += ["interpolate", "upsample"]
_NORMED = ["batchnorm", "layernorm", "rmsnorm", "groupnorm", "instancenorm"]


def _stopped(trace: Trace, result: Any, *inputs: Any) -> None:
    """A use of an operation that no rule covers."""
    if not isinstance(result, int | float | bool | torch.Size):
        trace.stop(f"this use of {trace.operation}", inputs)


def unary(trace: Trace, result: Any, x: Any, *_: Any, **__: Any) -> Any:
    """Entry by entry, or symmetric in the units: every axis stays what it is."""
    if not isinstance(x, Traced) or not isinstance(result, torch.Tensor) or result.shape != x.value.shape:
        return _stopped(trace, result, x)
    for axis in x.axes:
        trace.atoms.passed(trace.operation, axis)
    return Traced(result, list(x.axes))


def binary(trace: Trace, result: Any, *args: Any, **kwargs: Any) -> Any:
    """Entry by entry over several tensors: axes that meet are tied; a parameter that takes part is state."""
    operands = tensors_in((args, kwargs))
    if not isinstance(result, torch.Tensor):
        if operands and not isinstance(result, int | float | bool | torch.Size):
            trace.stop(trace.operation, operands)  # such as max with a dimension, which tells positions
            return tuple(Traced(r, [None] * r.dim()) for r in result)
        return None
    axes: list[Axis] = []
    for a in range(-result.dim(), 0):
        meeting = [t for t in operands if t.value.dim() >= -a and t.value.shape[a] == result.shape[a]]
        meeting.sort(key=lambda t: t.owned is not None)
        found: Axis = None
        moving = [t for t in meeting if t.axes[a] is not None or t.owned is not None]
        if any(t.axes[a] is not None for t in moving) and result.shape[a] > 1:
            for i, t in enumerate(meeting):
                one = (
                    trace.axis(t, t.value.dim() + a, "state", None if not i else found) if t.owned and i else t.axes[a]
                )
                found = one if not i else trace.atoms.tie(found, one)
            trace.atoms.passed(trace.operation, found)
        elif result.shape[a] > 1:
            for t in meeting:  # a parameter beside what never moves never moves
                if t.owned is not None:
                    trace.atoms.pin(trace.made(t, t.value.dim() + a))
        axes.append(found)
    return Traced(result, axes)


def reduced(trace: Trace, result: Any, x: Traced, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    """Sums and the like over axes: the axes go, and the order of the units in them does not matter."""
    if not isinstance(result, torch.Tensor) or not isinstance(x, Traced):
        return _stopped(trace, result, x)
    dim = more.get("axis", dim)
    if trace.operation == "norm":
        dim = more.get("dim")
    gone = range(x.value.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    out = {d % x.value.dim() for d in gone}
    for axis in x.axes:
        trace.atoms.passed(trace.operation, axis)
    kept = [None if a in out else axis for a, axis in enumerate(x.axes) if a not in out or keepdim]
    return Traced(result, kept) if len(kept) == result.dim() else _stopped(trace, result, x)


def pooled(trace: Trace, result: Any, x: Traced, *_: Any, **__: Any) -> Any:
    """Windows over positions: channels stay; positions never move."""
    count = next((int(c) for c in trace.operation if c.isdigit()), x.value.dim() - 2)
    for axis in x.axes[x.value.dim() - count :]:
        trace.atoms.pin(axis)
    if not isinstance(result, torch.Tensor):  # with the places of the largest
        return _stopped(trace, result, x)
    for axis in x.axes:
        trace.atoms.passed(trace.operation, axis)
    return Traced(result, [*x.axes[: x.value.dim() - count], *[None] * count])


def linear(trace: Trace, result: Any, x: Traced, weight: Traced, bias: Traced | None = None) -> Traced:
    trace.axis(weight, 1, "consumer", x.axes[-1])
    made = trace.made(weight, 0)
    trace.axis(bias, 0, "producer", made)
    return Traced(result, [*x.axes[:-1], made])


def convolution(
    trace: Trace, result: Any, x: Traced, weight: Traced, bias: Traced | None = None, *rest: Any, **more: Any
) -> Traced:
    """Kernels ``[out, in / groups, ...]``; with as many groups as inputs a kernel belongs to its channel."""
    count = weight.value.dim() - 2
    at = x.value.dim() - count - 1
    groups = more.get("groups", rest[3] if len(rest) > 3 else 1)
    seen = x.axes[at]
    inputs, outputs = x.value.shape[at], weight.value.shape[0]
    for axis in x.axes[at + 1 :]:
        trace.atoms.pin(axis)
    if groups == 1:
        trace.axis(weight, 1, "consumer", seen)
        made = trace.made(weight, 0)
    elif groups == inputs:  # more than one
        made = trace.made(weight, 0, "state")
        made = trace.atoms.tie(made, None if seen is None else np.repeat(seen, outputs // inputs))
    else:
        made = trace.made(weight, 0)
        per_in, per_out = inputs // groups, outputs // groups
        if made is not None:
            trace.atoms.see(made, np.arange(outputs) // per_out)
        if seen is not None:
            trace.atoms.see(seen, np.arange(inputs) // per_in)
            for g in range(groups):
                mine = seen[g * per_in : (g + 1) * per_in]
                trace.part(weight, 1, mine, ((0, g * per_out, (g + 1) * per_out),))
    trace.axis(bias, 0, "state" if groups == inputs > 1 else "producer", made)
    return Traced(result, [*x.axes[:at], made, *[None] * count])


def transposed(
    trace: Trace, result: Any, x: Traced, weight: Traced, bias: Traced | None = None, *rest: Any, **more: Any
) -> Traced:
    """Kernels ``[in, out / groups, ...]``."""
    count = weight.value.dim() - 2
    at = x.value.dim() - count - 1
    for axis in x.axes[at + 1 :]:
        trace.atoms.pin(axis)
    if more.get("groups", rest[3] if len(rest) > 3 else 1) != 1:
        trace.stop("a transposed convolution in groups", (x, weight, bias))
        return Traced(result, [None] * result.dim())
    trace.axis(weight, 0, "consumer", x.axes[at])
    made = trace.made(weight, 1)
    trace.axis(bias, 0, "producer", made)
    return Traced(result, [*x.axes[:at], made, *[None] * count])


def embedded(trace: Trace, result: Any, ids: Any, weight: Traced, *_: Any, **__: Any) -> Any:
    trace.pin(ids)
    made = trace.made(weight, 1)
    trace.atoms.pin(trace.made(weight, 0, "consumer"))
    return Traced(result, [*[None] * (result.dim() - 1), made])


def channelwise(trace: Trace, result: Any, x: Traced, *state: Any) -> Traced:
    """BatchNorm and InstanceNorm: each channel by itself, with weights and statistics of its own."""
    found = x.axes[1]
    for one in state:
        if isinstance(one, Traced) and one.value.dim():
            found = trace.axis(one, 0, "state", found)
    trace.atoms.passed(trace.operation, found)
    return Traced(result, [x.axes[0], found, *x.axes[2:]])


def lastwise(trace: Trace, result: Any, x: Traced, *state: Any) -> Traced:
    """LayerNorm and RMSNorm: over the last axes, symmetric in their positions."""
    axes = list(x.axes)
    for one in state:
        if isinstance(one, Traced):
            for a in range(-one.value.dim(), 0):
                if axes[a] is not None:
                    axes[a] = trace.axis(one, one.value.dim() + a, "state", axes[a])
                else:
                    trace.atoms.pin(trace.made(one, one.value.dim() + a, "state"))
    for axis in axes:
        trace.atoms.passed(trace.operation, axis)
    return Traced(result, axes)


def groupwise(trace: Trace, result: Any, x: Traced, count: int, *state: Any) -> Traced:
    """GroupNorm: channels may change places within their block."""
    if x.axes[1] is not None and count < len(x.axes[1]):
        trace.atoms.see(x.axes[1], np.arange(len(x.axes[1])) // (len(x.axes[1]) // count))
    return channelwise(trace, result, x, *state)


def multiplied(trace: Trace, result: Any, x: Any, y: Any, **_: Any) -> Any:
    """Matrix products: the axes summed over are tied, the others stay."""
    if x.value.dim() < 2 or y.value.dim() < 2:
        trace.stop("a product with a vector", (x, y))
        return None
    for t, axis in ((x, -1), (y, -2)):
        if t.owned is not None:
            trace.made(t, t.value.dim() + axis, "consumer")
    trace.atoms.tie(x.axes[-1], y.axes[-2])
    for t, axis in ((x, -2), (y, -1)):
        if t.owned is not None:
            trace.made(t, t.value.dim() + axis)
    for t in (x, y):
        for axis in t.axes[:-2]:
            trace.atoms.pin(axis)
    return Traced(result, [*[None] * (result.dim() - 2), x.axes[-2], y.axes[-1]])


def attended(trace: Trace, result: Any, q: Traced, k: Traced, v: Traced, *rest: Any, **more: Any) -> Any:
    trace.pin((rest, more))
    trace.atoms.tie(q.axes[-1], k.axes[-1])
    for t in (q, k, v):
        for axis in t.axes[:-1]:
            trace.atoms.pin(axis)
    return Traced(result, [*[None] * (result.dim() - 1), v.axes[-1]])


def prelu(trace: Trace, result: Any, x: Traced, weight: Traced) -> Any:
    if weight.value.numel() == 1:
        return unary(trace, result, x)
    return channelwise(trace, result, x, weight)


def _constant(trace: Trace, result: Any, *_: Any, **__: Any) -> Any:
    """New tensors that take no more than a shape from their arguments."""
    return None


def _quiet(trace: Trace, result: Any, *_: Any, **__: Any) -> Any:
    """Sizes and shapes: plain Python."""
    return None if isinstance(result, torch.Tensor) else result


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(_BINARY, binary),
    **dict.fromkeys(_REDUCED, reduced),
    **dict.fromkeys(POOLED, pooled),
    **dict.fromkeys(("size", "dim", "getattr", "len", "numel", "floordiv"), _quiet),
    **dict.fromkeys(_NEW, _constant),
    "linear": linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("convtranspose1d", "convtranspose2d", "convtranspose3d"), transposed),
    **dict.fromkeys(("matmul", "bmm", "mm", "imatmul"), multiplied),
    "prelu": prelu,
    "scaleddotproductattention": attended,
    "embedding": embedded,
    "batchnorm": lambda t, r, x, mean=None, var=None, weight=None, bias=None, *_, **__: channelwise(
        t, r, x, mean, var, weight, bias
    ),
    "layernorm": lambda t, r, x, shape, weight=None, bias=None, *_, **__: lastwise(t, r, x, weight, bias),
    "rmsnorm": lambda t, r, x, shape, weight=None, *_, **__: lastwise(t, r, x, weight),
    "groupnorm": lambda t, r, x, count, weight=None, bias=None, *_, **__: groupwise(t, r, x, count, weight, bias),
    **shaping.RULES,
}
