"""Rules of torch.nn's layers: each is that of an operation, with the layer's own parameters as its operands.

A rule also gets the module and its parameters by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from nett.core.symmetry import shaping
from nett.core.symmetry.rules import (
    POOLED,
    UNARY,
    Rule,
    channelwise,
    convolution,
    embedded,
    groupwise,
    lastwise,
    linear,
    pooled,
    prelu,
    transposed,
    unary,
)  # fmt: skip
from nett.core.symmetry.trace import Trace, Traced


def _attention(
    trace: Trace,
    module: Any,
    own: dict[str, Any],
    result: Any,
    q: Traced,
    k: Traced,
    v: Traced,
    *rest: Any,
    **more: Any,
) -> Any:
    """nn.MultiheadAttention: inputs are read by the columns of one matrix, heads may change places as a whole."""
    inputs = (q, k, v)
    if "in_proj_weight" not in own or module.bias_k is not None:
        trace.stop("attention with inputs of several widths", (*inputs, list(own.values())))
        return None
    trace.pin((rest, more))
    weight, out = own["in_proj_weight"], own["out_proj.weight"]
    for one in inputs:
        trace.axis(weight, 1, "consumer", one.axes[-1])
        for axis in one.axes[:-1]:
            trace.atoms.pin(axis)
    heads = np.repeat(trace.atoms.fresh(module.num_heads), module.head_dim)
    trace.axis(weight, 0, "producer", np.tile(heads, 3))
    trace.axis(own.get("in_proj_bias"), 0, "producer", np.tile(heads, 3))
    trace.axis(out, 1, "consumer", heads)
    made = trace.made(out, 0)
    trace.axis(own.get("out_proj.bias"), 0, "producer", made)
    mixed, weights = result
    found = Traced(mixed, [*[None] * (mixed.dim() - 1), made])
    if weights is None:
        return found, None
    if not more.get("average_attn_weights", True):
        trace.atoms.pin(heads)
    return found, Traced(weights, [None] * weights.dim())


def _grouped(trace: Trace, module: Any, own: dict[str, Any], result: Any, x: Traced) -> Traced:
    trace.operation = "groupnorm"
    return groupwise(trace, result, x, module.num_groups, own.get("weight"), own.get("bias"))


def _as(name: str, rule: Rule) -> Rule:
    def of_module(trace: Trace, module: Any, own: dict[str, Any], result: Any, *args: Any, **kwargs: Any) -> Any:
        trace.operation = name
        return rule(trace, result, *args, **kwargs)

    return of_module


def _weighted(rule: Rule, *parameters: str) -> Rule:
    def of_module(trace: Trace, module: Any, own: dict[str, Any], result: Any, x: Any) -> Any:
        trace.operation = type(module).__name__.lower()
        more = {"groups": module.groups} if hasattr(module, "groups") else {}
        return rule(trace, result, x, *[own.get(p) for p in parameters], **more)

    return of_module


def _module_names(names: Sequence[str]) -> dict[type, str]:
    """torch.nn classes whose name, in lower case, is one of ``names``."""
    known = {n.lower(): getattr(nn, n) for n in dir(nn) if isinstance(getattr(nn, n), type)}
    return {known[n]: n for n in names if n in known}


_STATS = ("running_mean", "running_var", "weight", "bias")
MODULES: dict[type, Rule] = {
    **{c: _as(n, unary) for c, n in _module_names(UNARY).items()},
    **{c: _as(n, pooled) for c, n in _module_names(POOLED).items()},
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _weighted(convolution, "weight", "bias")),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _weighted(transposed, "weight", "bias")
    ),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _weighted(channelwise, *_STATS)),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _weighted(channelwise, *_STATS)),
    nn.Linear: _weighted(linear, "weight", "bias"),
    nn.LayerNorm: _weighted(lastwise, "weight", "bias"),
    nn.RMSNorm: _weighted(lastwise, "weight"),
    nn.Embedding: _weighted(embedded, "weight"),
    nn.PReLU: _weighted(prelu, "weight"),
    nn.GroupNorm: _grouped,
    nn.MultiheadAttention: _attention,
    nn.Flatten: lambda t, m, own, r, x: shaping.reshaped(t, r, x),
    nn.Unflatten: lambda t, m, own, r, x: shaping.reshaped(t, r, x),
    nn.ZeroPad2d: lambda t, m, own, r, x: shaping.padded(t, r, x, m.padding),
    nn.GLU: lambda t, m, own, r, x: shaping.gated(t, r, x, m.dim),
}
