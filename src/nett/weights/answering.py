"""A kernel called with what its operands ask for: weights, moments of the inputs, places of scales."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nett.core.blocks import Linear, Skeleton
from nett.core.errors import NettError
from nett.core.moments import NAMES
from nett.core.registry import Card
from nett.weights.protocol import SHARED, Answer, Scaled, Tensor


class Answered(NamedTuple):
    """A layer, its weight, what the kernel made of it, the seconds that took, and what its inputs are divided by."""

    linear: Linear
    weight: Tensor
    answer: Answer
    seconds: float
    scale: Tensor | None = None


def answers(
    card: Card,
    skeleton: Skeleton,
    compressed: Skeleton | None,
    group: Sequence[Linear],
    parameters: Sequence[Mapping[str, Any]],
    moments: Mapping[str, Any],
    dtype: Any = None,
    *,
    changed: Mapping[str, Tensor] | None = None,
    source: Tensor | None = None,
) -> list[Answered]:
    """Each layer of a group (layers that share an input, with their parameters; the first one's hold where the kernel
    sees them all). ``changed``: tensors of the model that are others by now. ``source``: of the group's inputs."""
    kernel, operands = card.kernel(), card.operands

    def own(name: str) -> Any:
        if changed is not None and name in changed:
            return changed[name]
        return cast(skeleton.tensor(name), dtype) if name in skeleton.checkpoint.tensors else None

    def given(name: str, layer: Linear) -> Any:
        if name in NAMES:
            return moments[layer.name][name]
        if name == "source":
            return source
        if name == "bias":
            return own(f"{layer.module}.bias")
        if name == "compressed":
            if compressed is None:
                raise NettError(f"{card.key} takes the compressed model too")
            return cast(compressed.tensor(layer.weight), dtype)
        return own(layer.weight)

    found: list[Answered] = []
    shared = operands[0] == SHARED
    for part, first in (
        [(group, parameters[0])] if shared else [([a], p) for a, p in zip(group, parameters, strict=True)]
    ):
        began = time.perf_counter()
        weights = [given("weight", layer) for layer in part]
        more = [given(name, part[0]) for name in operands[1:]]
        made: Any = kernel(weights if shared else weights[0], *more, **first)
        scale = None
        if isinstance(made, Scaled):
            if source is None:
                raise NettError(f"{card.key} scales inputs of {part[0].module}, which nothing before it takes up")
            made, scale = made.answers, made.scale
        each = (time.perf_counter() - began) / len(part)
        several = made if shared else [made]
        found += [Answered(*one, each, scale) for one in zip(part, weights, several, strict=True)]
    return found


def cast(tensor: Tensor, dtype: Any) -> Tensor:
    """A tensor in the output's type, where that is another and the tensor no whole numbers."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
