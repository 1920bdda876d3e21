"""Layers that hold nearly the same weights as another layer."""

from __future__ import annotations

import functools
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from nett.core.delta import relative_error
from nett.core.dtypes import Array
from nett.core.edge import Edge
from nett.core.layers import layer_of
from nett.core.moved import Moved, Movement
from nett.core.registry import Between, method
from nett.core.sweep import Pass
from nett.scan.protocol import Asset, Finding, Findings, Probe, Study, probe

_SPAN = 256  # the sample of a tensor is made of runs of neighbouring elements, so that few pages are read
_SPANS, _SPANS_OF_LAYER = 16, 256  # runs at most, and for all tensors of a layer about


class Layer(NamedTuple):
    """A layer of an asset: role of each tensor -> its name."""

    asset: Asset
    name: str
    roles: Mapping[str, str]

    @property
    def label(self) -> str:
        return self.asset.label(self.name)


@method(title="Near-equal layers", kind="measure", guarantee="measured", grain="stream", command=True)
@probe
def near_equal_layers(
    assets: Sequence[Asset],
    *,
    similar: Annotated[float, Between(0, 1)] = 0.95,
    seed: Annotated[int, Between(0)] = 0,
) -> Probe:
    """Find layers of a checkpoint whose weights nearly equal those of an earlier layer.

    Tensors play the same role if their names differ only in the layer's number. A seeded sample of every layer
    tells which pairs could be near; those are then compared element by element.

    Args:
        similar: least cosine between two layers' weights, over all their tensors.
        seed: of the sample.
    When to use: on models made deeper by repeating layers, on merges of layer ranges, on recurrent designs.
    When not: to find layers that act alike with different weights; that takes activations.
    Guarantee: measured. The error is the relative L2 distance over all of the layer's weights.
    Cost: some kilobytes a tensor; candidates are read once more.
    Source: no paper; cosine of the weights.
    """
    stacks = [stack for asset in assets for stack in _stacks(asset)]
    samples = {
        (layer.label, role): Study(
            (layer.asset.source(layer.roles[role]),), functools.partial(_sample, role, _spans(layer), seed)
        )
        for stack in stacks
        for layer in stack
        for role in layer.roles
    }
    yield list(samples.values())
    pairs = [p for s in stacks for p in _candidates(s, {k: v.answer for k, v in samples.items()}, similar - 0.1)]
    checks = [[_moved(earlier, later, role) for role in later.roles] for earlier, later in pairs]
    yield [one for check in checks for one in check]
    found = []
    for (earlier, later), check in zip(pairs, checks, strict=True):
        moved = sum((one.answer for one in check), Movement())
        if moved.cosine >= similar and not moved.nonfinite:
            found.append(_finding(earlier, later, check, moved))
    return Findings(tuple(found), {"layers": sum(map(len, stacks)), "near": len(found)})


def _stacks(asset: Asset) -> list[list[Layer]]:
    """Layers with the same prefix, roles and shapes, in order; groups of two or more."""
    roles: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    layers = {}
    for name, info in asset.checkpoint.tensors.items():
        found = layer_of(name)
        if found is not None and info.dtype.is_float and info.size:
            roles[found.stack, found.number][found.role] = name
            layers[found.stack, found.number] = found.layer
    groups: dict[Any, list[Layer]] = defaultdict(list)
    for (stack, number), names in sorted(roles.items()):
        shape = tuple((role, asset.checkpoint.tensors[names[role]].shape) for role in sorted(names))
        groups[stack, shape].append(Layer(asset, layers[stack, number], {role: names[role] for role in sorted(names)}))
    return [group for group in groups.values() if len(group) > 1]


def _sample(role: str, spans: int, seed: int, source: Any) -> Array:
    """The same places of every tensor of one role and size, scaled so that sums estimate those over all elements."""
    size = source.info.size
    if size <= spans * _SPAN:
        return np.asarray(source.values(0, size), dtype=np.float32)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(role.encode()), size]))
    starts = np.sort(rng.integers(0, size // _SPAN, spans)) * _SPAN
    runs = [source.values(int(s), int(s) + _SPAN) for s in starts]
    scale = np.float32(np.sqrt(size / (spans * _SPAN)))
    return np.asarray(np.concatenate(runs).astype(np.float32) * scale)


def _spans(layer: Layer) -> int:
    """Runs to sample of each tensor: fewer where a layer has many, as with experts."""
    return max(1, min(_SPANS, _SPANS_OF_LAYER // len(layer.roles)))


def _candidates(
    stack: Sequence[Layer], samples: Mapping[tuple[str, str], Array], least: float
) -> list[tuple[Layer, Layer]]:
    """Each layer with the earlier one that its sample is nearest to, where that is near."""
    rows = np.stack([np.concatenate([samples[layer.label, role] for role in layer.roles]) for layer in stack])
    rows[~np.isfinite(rows).all(axis=1)] = 0.0
    lengths = np.linalg.norm(rows, axis=1)
    rows /= np.where(lengths > 0, lengths, 1.0)[:, None]
    cosines = rows @ rows.T
    cosines += (lengths == 0)[:, None] & (lengths == 0)[None, :]  # two zero layers are equal
    pairs = []
    for later in range(1, len(stack)):
        earlier = int(np.argmax(cosines[later, :later]))
        if cosines[later, earlier] >= least:
            pairs.append((stack[earlier], stack[later]))
    return pairs


def _moved(earlier: Layer, later: Layer, role: str) -> Pass:
    a, b = (layer.asset.source(layer.roles[role]) for layer in (earlier, later))
    return Pass((a, b), Moved(a.info.dtype, b.info.dtype))


def _finding(earlier: Layer, later: Layer, check: Sequence[Pass], moved: Movement) -> Finding:
    parts = tuple(
        Edge(
            "near_equal_layer",
            later.asset.label(later.roles[role]),
            (earlier.asset.label(earlier.roles[role]),),
            None,
            later.asset.checkpoint.tensors[later.roles[role]].nbytes,
            None,
            relative_error(one.answer.distance, one.answer.b_square),
            "measured",
        )
        for role, one in zip(later.roles, check, strict=True)
    )
    freed = sum(p.bytes_freed for p in parts)
    error = relative_error(moved.distance, moved.b_square)
    edge = Edge("near_equal_layer", later.label, (earlier.label,), None, freed, None, error, "measured")
    return Finding(edge, parts)
