"""What the units of two networks do on the same inputs, and which of them go together (activation matching)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.assignment import assigned
from nett.core.dtypes import Array
from nett.core.network import Network
from nett.core.symmetry import Group, Place, Symmetry


@final
@dataclass
class Products:
    """Sums over all inputs and positions of the units' values. cross: ``[n, n]``, first network's unit by second's."""

    cross: Array
    first: Array  # [n], squares
    second: Array

    def distance(self) -> Array:
        """``[n, n]``: squared distance of each unit of the first network to each of the second."""
        return np.asarray(np.maximum(self.first[:, None] + self.second - 2 * self.cross, 0))

    def order(self) -> Array:
        """The second network's unit for each of the first's, so that the distances are least in sum."""
        return assigned(self.cross)  # the squares are in every sum

    def scores(self, order: Array, score: str) -> Array:
        """``[n]``: how well each pair goes together, larger is better."""
        found = self.cross if score == "inner" else -self.distance()
        return np.asarray(found[np.arange(len(order)), order])


def layers_of(module: Any) -> dict[str, Any]:
    """Name -> fully connected or convolutional layer whose every output reads every input."""
    from torch import nn

    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and getattr(layer, "groups", 1) == 1
    }


def units_first(layer: Any, values: Array) -> Array:
    """``[channels, …]`` of what a layer took or gave."""
    from torch import nn

    axis = -1 if isinstance(layer, nn.Linear) else values.ndim - (3 if isinstance(layer, nn.Conv2d) else 2)
    return np.moveaxis(values, axis, 0)


def products(
    network: Network, one: Mapping[str, Array], two: Mapping[str, Array], symmetry: Symmetry
) -> dict[str, Products]:
    """For each group that a layer reads (else: that a layer makes), the products of its units' values in both networks.

    Groups inside others, and those that hold some, are left out: which of their units are alike depends on others.
    """
    layers = layers_of(network.module)
    reads: dict[str, list[tuple[str, Place, bool]]] = {}
    parents = {g.parent for g in symmetry.groups}
    for group in symmetry.groups:
        if group.parent is None and group.name not in parents:
            seen = _seen(group, layers, "consumer") or _seen(group, layers, "producer")
            if seen:
                reads[group.name] = seen
    names = sorted({layer for seen in reads.values() for layer, _, _ in seen})
    found = {name: Products(*_zeros(symmetry.group(name).size)) for name in reads}
    for ours, theirs in zip(network.taps(one, names), network.taps(two, names), strict=True):
        for name, seen in reads.items():
            for layer, place, output in seen:
                a, b = (_values(layers[layer], tap[layer][output], place) for tap in (ours, theirs))
                found[name].cross += a @ b.T
                found[name].first += np.einsum("ij,ij->i", a, a)
                found[name].second += np.einsum("ij,ij->i", b, b)
    return found


def weight_scores(
    group: Group, one: Mapping[str, Array], two: Mapping[str, Array], score: str, left_out: Sequence[str] = ()
) -> Array:
    """``[n]``: how alike the weights of each unit are in two aligned networks, larger is better."""
    found = np.zeros(group.size)
    for place in group.places:
        if place.tensor in one and place.tensor not in left_out and not place.tensor.endswith(("_mean", "_var")):
            a, b = (place.units(t[place.tensor]).astype(np.float64) for t in (one, two))
            found += np.sum(a * b, axis=1) if score == "inner" else -np.sum((a - b) ** 2, axis=1)
    return found


def _seen(group: Group, layers: Mapping[str, Any], role: str) -> list[tuple[str, Place, bool]]:
    """(layer, place, whether it is the layer's output) where the group's units can be seen."""
    axis = 1 if role == "consumer" else 0
    found = []
    for place in group.places:
        layer = place.tensor.removesuffix(".weight")
        if place.role == role and place.axis == axis and not place.where and layer in layers:
            found.append((layer, place, role == "producer"))
    return found


def _values(layer: Any, values: Array, place: Place) -> Array:
    """``[n, …]``: the values of a group's units, all inputs and positions in a row."""
    channels = units_first(layer, values)
    flat = channels.reshape(channels.shape[0], -1)[place.index.reshape(-1)]
    return flat.reshape(place.index.shape[0], -1).astype(np.float64)


def _zeros(size: int) -> tuple[Array, Array, Array]:
    return np.zeros((size, size)), np.zeros(size), np.zeros(size)
