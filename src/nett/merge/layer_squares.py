"""Weights of a wider network solved layer by layer: least squares on what both networks' layers took and gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.network import Network
from nett.merge.features import layers_of, units_first
from nett.merge.partial import NOTHING, Partial

GRAM_BYTES = 1 << 30  # of the layers that are summed up in one pass over the data
_ROWS = 1 << 22  # numbers of unfolded input at a time
_EXACT = 1e-12  # of the target's squares: such weights are what was asked for already

Pair = tuple[Array, Array]


@final
@dataclass(frozen=True)
class Layer:
    """One layer of the wider network.

    into, out: for each input and output, its position in each network or ``NOTHING``. heads: the network that this
    layer belongs to alone, where both have outputs of their own.
    """

    name: str
    module: Any
    into: Pair
    out: Pair
    head: int | None = None

    @property
    def kernel(self) -> int:
        """Weights for each pair of an input and an output."""
        return int(np.prod(getattr(self.module, "kernel_size", (1,))))

    @property
    def columns(self) -> int:
        return len(self.into[0]) * self.kernel + (self.module.bias is not None)

    @property
    def nbytes(self) -> int:
        """Of its sums."""
        return 8 * self.columns * (self.columns + len(self.out[0]))

    def joined(self, values: Pair, places: Pair) -> Array:
        """``[wider, …]`` of both networks' values: the mean where a position is both's, its own elsewhere."""
        found = []
        for one, at in zip(values, places, strict=True):
            taken = one[np.maximum(at, 0)].astype(np.float64)
            taken[at == NOTHING] = 0
            found.append(taken)
        total = np.asarray(found[0] + found[1])
        total[(places[0] >= 0) & (places[1] >= 0)] *= 0.5
        return total

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """(rows, columns that they may read): merged rows read all, a network's own rows none of the other's units."""
        bias = np.ones(self.columns - len(self.into[0]) * self.kernel, bool)
        reads = [np.concatenate([np.repeat(at >= 0, self.kernel), bias]) for at in self.into]
        if self.head is not None:
            yield np.arange(len(self.out[0])), np.flatnonzero(reads[self.head])
            return
        mine, theirs = (at >= 0 for at in self.out)
        for rows, columns in (
            (mine & theirs, reads[0] | reads[1]),
            (mine & ~theirs, reads[0]),
            (theirs & ~mine, reads[1]),
        ):
            if rows.any():
                yield np.flatnonzero(rows), np.flatnonzero(columns)


@final
class Sums:
    """Of one layer over all inputs z (a column of ones for the bias) and targets y: zz', yz' and the squares of y."""

    def __init__(self, columns: int, rows: int) -> None:
        self.gram, self.cross = np.zeros((columns, columns)), np.zeros((rows, columns))
        self.squares = np.zeros(rows)

    def add(self, z: Array, y: Array) -> None:
        """``z [n, columns]``, ``y [n, rows]``, float64."""
        self.gram += z.T @ z
        self.cross += y.T @ z
        self.squares += np.einsum("ij,ij->j", y, y)

    def error(self, weight: Array) -> float:
        """Squared error of ``weight [rows, columns]`` as a share of the squares of the targets."""
        left = self.squares.sum() - 2 * np.sum(weight * self.cross) + np.sum((weight @ self.gram) * weight)
        return float(max(0.0, left) / max(self.squares.sum(), 1e-300))

    def solved(self, start: Array, blocks: Sequence[tuple[Array, Array]], ridge: float) -> Array:
        """The weights of least squares, each block of rows on the columns that it may read; zero elsewhere.

        minimise |W z - y|^2 + ridge * mean(z^2) * |W - start|^2: where the inputs leave a choice, ``start`` decides.
        """
        found = np.zeros_like(start)
        for rows, columns in blocks:
            gram = self.gram[np.ix_(columns, columns)]
            first = start[np.ix_(rows, columns)]
            rest = self.cross[np.ix_(rows, columns)] - first @ gram
            weight = ridge * float(np.trace(gram)) / len(columns)
            if weight > 0:
                step = np.linalg.solve(gram + weight * np.eye(len(columns)), rest.T).T
            else:
                step = rest @ np.linalg.pinv(gram, rcond=1e-12, hermitian=True)
            found[np.ix_(rows, columns)] = first + step
        return found


def layers_to_solve(network: Network, partial: Partial, heads: Sequence[str] = ()) -> tuple[list[Layer], list[str]]:
    """The layers whose weights can be solved for, and the names of the weights that nothing is solved for.

    A tensor in ``heads`` is one that each network has for itself; it gives one layer a network.
    """
    layers, covered = list[Layer](), set[str]()
    for name, module in layers_of(network.module).items():
        weight = f"{name}.weight"
        if weight in partial.old.aliases or weight not in partial.old.shapes:
            continue
        covered |= {weight, f"{name}.bias"}
        into = partial.axis(weight, 1)
        for head in (0, 1) if weight in heads else (None,):
            layers.append(Layer(name, module, into, partial.axis(weight, 0), head))
    left = [n for n, shape in partial.old.shapes.items() if len(shape) > 1 and n not in covered]
    return layers, left


def passes(layers: Sequence[Layer], limit: int = GRAM_BYTES) -> list[list[Layer]]:
    """Layers in groups whose sums fit in memory together: one pass over the data each."""
    found: list[list[Layer]] = []
    filled = 0
    for layer in layers:
        if not found or filled + layer.nbytes > limit:
            found.append([])
            filled = 0
        found[-1].append(layer)
        filled += layer.nbytes
    return found


def solve(
    network: Network,
    layers: Sequence[Layer],
    one: Mapping[str, Array],
    two: Mapping[str, Array],
    starts: Sequence[Mapping[str, Array]],
    ridge: float,
) -> tuple[list[dict[str, Array]], list[dict[str, Any]]]:
    """The weights of ``layers``, and for each layer its error before and after.

    Args:
        one, two: both networks' tensors, aligned; each layer's targets are what it gives in them on its own inputs.
        starts: the wider network's tensors so far; two, one with the head of each network, where heads are apart.

    Returns tensors for each of ``starts`` (a layer that is no head changes all of them).
    """
    made: list[dict[str, Array]] = [{} for _ in starts]
    rows = []
    for some in passes(layers):
        names = sorted({layer.name for layer in some})
        sums = [Sums(layer.columns, _outputs(layer, starts)) for layer in some]
        for ours, theirs in zip(network.taps(one, names), network.taps(two, names), strict=True):
            for layer, total in zip(some, sums, strict=True):
                _add(layer, total, ours[layer.name], theirs[layer.name])
        for layer, total in zip(some, sums, strict=True):
            of = range(len(starts)) if layer.head is None else (layer.head,)
            record, tensors = _solved(layer, total, starts[of[0]], ridge)
            rows.append(record)
            for k in of:
                made[k] |= tensors
    return made, rows


def _outputs(layer: Layer, starts: Sequence[Mapping[str, Array]]) -> int:
    return int(starts[layer.head or 0][f"{layer.name}.weight"].shape[0])


def _solved(
    layer: Layer, sums: Sums, start: Mapping[str, Array], ridge: float
) -> tuple[dict[str, Any], dict[str, Array]]:
    weight, bias = start[f"{layer.name}.weight"], start.get(f"{layer.name}.bias")
    first = weight.reshape(weight.shape[0], -1).astype(np.float64)
    if layer.module.bias is not None and bias is not None:
        first = np.hstack([first, bias[:, None].astype(np.float64)])
    before = after = sums.error(first)
    made: dict[str, Array] = {}
    if before > _EXACT:
        found = sums.solved(first, _with_rows(layer, weight.shape[0]), ridge)
        after = sums.error(found)
        size = weight[0].size
        made[f"{layer.name}.weight"] = found[:, :size].reshape(weight.shape).astype(weight.dtype)
        if bias is not None and found.shape[1] > size:
            made[f"{layer.name}.bias"] = found[:, size].astype(bias.dtype)
    of = {} if layer.head is None else {"network": layer.head}
    return {"layer": layer.name, **of, "error_before": before, "error_after": after}, made


def _with_rows(layer: Layer, rows: int) -> list[tuple[Array, Array]]:
    """The layer's blocks; a head has as many rows as its network has outputs."""
    if layer.head is None:
        return list(layer.blocks())
    return [(np.arange(rows), columns) for _, columns in layer.blocks()]


def _add(layer: Layer, sums: Sums, ours: Pair, theirs: Pair) -> None:
    """Add one batch: (input, output) of the layer in each network."""
    inputs, outputs = ((units_first(layer.module, ours[k]), units_first(layer.module, theirs[k])) for k in (0, 1))
    z = layer.joined(inputs, layer.into)
    y = layer.joined(outputs, layer.out) if layer.head is None else outputs[layer.head].astype(np.float64)
    count = z.shape[1]  # inputs of the batch
    each = max(1, z[:, :1].size * layer.kernel)
    step = max(1, _ROWS // each)
    for start in range(0, count, step):
        rows = unfolded(layer.module, z[:, start : start + step])
        if layer.module.bias is not None:
            rows = np.hstack([rows, np.ones((len(rows), 1))])
        sums.add(rows, y[:, start : start + step].reshape(len(y), -1).T)


def unfolded(module: Any, z: Array) -> Array:
    """``[n, inputs * kernel]``: what each output position of a layer reads, from ``z [inputs, batch, …]``."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    if isinstance(module, nn.Linear):
        return np.ascontiguousarray(z.reshape(z.shape[0], -1).T)
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(z, 0, 1)))
    sides, mode = module._reversed_padding_repeated_twice, module.padding_mode
    x = F.pad(x, tuple(sides), mode="constant" if mode == "zeros" else mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if isinstance(module, nn.Conv1d):
        x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
    found = F.unfold(x, kernel, dilation=dilation, stride=stride)  # [batch, inputs * kernel, positions]
    return np.ascontiguousarray(found.permute(0, 2, 1).reshape(-1, found.shape[1]).numpy())
