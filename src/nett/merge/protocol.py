"""The one shape of this room's methods, and its laws.

A merge is a pure kernel ``method(base, tuned, *, parameters) -> merged`` (without ``base`` where it needs none).
``base`` is an array (or None, where the card's ``needs`` do not name it and no base is given), ``tuned`` a sequence
of arrays of the same shape, in the order given. Kernels of grain ``stream`` see flat float32 (or float64) chunks,
those of ``rows`` some rows at a time in their shape; of grain ``tensor``, whole tensors. A kernel that must know
something of the whole tensor or model yields asks (:mod:`nett.core.passes`), also for the tensor's name.

A kernel whose card says ``carries`` goes through ``tuned`` once, in order, and asks for what it carries from model to
model (:mod:`nett.core.carrying`); the engine reads each model when it is asked for, keeps what is carried on disk, and
with ``--state`` goes on from what earlier runs left. What is carried must not depend on where the models are cut.

What it returns is one array, or a mapping from the names in the card's ``outputs`` to arrays: ``name`` holds one
array, ``name*`` a list with one for each model, ``:bits`` behind it booleans, stored as packed bits. ``restore`` names
a function of the same file, ``(base, <output>, …) -> array``, which rebuilds the model that its ``name*`` belongs to.

A kernel that has an operand ``symmetry`` sees whole networks instead: ``method(models, symmetry, network=None, *,
parameters) -> Whole`` (driven by :mod:`nett.merge.whole`). ``models`` holds one mapping name -> array for each model,
floats only; ``symmetry`` the groups of units that may change places (:mod:`nett.core.symmetry`), proved before the
kernel sees them; ``network`` the code with data to run it on, or None where the user gave none (in ``needs``, it must
be given); an operand ``noise`` behind it is the code on random input, given where there is code but no data. A method
on one network calls its first operand ``model`` and is given that one; one on two says so in its file, ``MODELS =
2``. A function ``memory(symmetry, parameters)`` there gives the bytes that it needs beside the models, for the plan.
The result's tensors may have shapes of their own (``resizes``): the engine writes what comes. So weight matching
permutes and averages; partial merging (PLeaS) takes the same operands and ``network.taps``, and gives wider tensors
with the widths in ``config``, or in ``files`` where the network has no config; feature merging (IFM) takes ``model``
alone and gives narrower ones. What a network's symmetry needs to know of a resized network, it derives again from the
new shapes.

Parameters typed ``float | Sequence[float]`` take one value or one for each model. Laws (run by the conformance
suite over every card): with the card's ``identity`` parameters and one fine-tune, the result is that fine-tune;
``symmetric`` methods do not depend on the order of the models; inputs are not written to; the same seed gives the
same bits; chunks of any size give what whole arrays give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError

Weights = float | Sequence[float]


@final
@dataclass(frozen=True)
class Whole:
    """What a kernel of grain ``model`` gives back.

    tensors: the merged network, of any shapes. figures: for the receipt. rows: one record a model, for the receipt.
    files: small files that go beside the weights. config: changes to ``config.json``. charts: for the report, as
    :func:`nett.core.report.charts.add` takes them.
    """

    tensors: Mapping[str, Array]
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    charts: Sequence[Mapping[str, Any]] = ()


def for_each(value: Weights, count: int, name: str) -> list[float]:
    """One value a model: a single number is repeated, a list must have ``count`` entries."""
    if isinstance(value, int | float):
        return [float(value)] * count
    values = [float(v) for v in value]
    if len(values) != count:
        raise UsageError(f"{name} has {len(values)} values for {count} models", hint="Give one value, or one a model.")
    return values


def weighted(array: Array, weight: float) -> Array:
    """``array * weight`` in the array's own precision, and the array itself for weight 1."""
    if weight == 1.0:
        return array
    return np.asarray(array * array.dtype.type(weight))


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Sum of weight * array, in order."""
    total: Any = arrays[0] * arrays[0].dtype.type(weights[0])
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += weighted(array, weight)
    return np.asarray(total)


def share(weights: Sequence[float]) -> float:
    """The sum of the weights as a divisor: 1 where it vanishes."""
    total = sum(weights)
    return total if abs(total) >= 1e-8 else 1.0
