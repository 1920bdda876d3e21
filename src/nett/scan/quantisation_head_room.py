"""How coarsely a model's matrices could be written."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from math import sqrt
from typing import Annotated, Any

import numpy as np

from nett.core.checkpoint import TensorInfo
from nett.core.dtypes import Array
from nett.core.edge import Edge
from nett.core.layers import layer_of
from nett.core.registry import Between, method
from nett.scan.protocol import Asset, Finding, Findings, Probe, Study, probe

_GROUPS = (128, 64, 32)  # columns that share a scale, as nett weights takes them
_LEAST = 1 << 14  # bytes of a matrix that is worth it
_WIDTHS = {8: ("rtn", ""), 4: ("gptq", " --calibration TEXT")}


def squares(rows: int, source: Any) -> tuple[float, dict[int, float]]:
    """Of some rows, evenly spread: sum of squares, and for each width that of the errors of rounding to nearest, with a
    scale max|w| / ((2^bits - 1) / 2) for each group of columns."""
    height, columns = source.shape
    group = next((g for g in _GROUPS if columns % g == 0), columns)
    whole, wrong = 0.0, dict.fromkeys(_WIDTHS, 0.0)
    for row in sorted({i * (height - 1) // max(1, rows - 1) for i in range(min(rows, height))}):
        values: Array = source.values(row * columns, (row + 1) * columns).astype(np.float64).reshape(-1, group)
        whole += float(np.square(values).sum())
        for bits in _WIDTHS:
            scale = np.abs(values).max(1, keepdims=True) / ((2**bits - 1) / 2)
            scale[scale == 0] = 1.0
            codes = np.clip(np.rint(values / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            wrong[bits] += float(np.square(codes * scale - values).sum())
    return whole, wrong


@method(title="Quantisation head-room", kind="measure", guarantee="measured", grain="tensor", command=True)
@probe
def quantisation_head_room(assets: Sequence[Asset], *, rows: Annotated[int, Between(2, 4096)] = 16) -> Probe:
    """Tell what 8 and 4 bits a weight would free of a model's layers, and how far rounding moves the weights.

    Formula: error = ||round(w / s) s - w|| / ||w||,   s = max|w| / ((2^bits - 1) / 2) for each group of columns
    Args:
        rows: rows that are looked at of each matrix, evenly spread.
    When to use: to see what a model could lose in bytes, before a text is at hand to measure what it loses in words.
    When not: as a promise of quality: nett weights measures that on a text; on models that are quantised already.
    Guarantee: measured, on the weights alone and on the rows looked at; gptq moves weights further and outputs less.
    Cost: some rows of each matrix inside layers.
    Source: rounding to nearest as compressed-tensors defines it; no paper.
    """
    mine = [(a, info) for a in assets for info in a.checkpoint.tensors.values() if _may(info)]
    work = functools.partial(squares, rows)
    studies = [Study((asset.source(info.name),), work) for asset, info in mine]
    yield studies
    parts: dict[tuple[Asset, int], list[Edge]] = {}
    sums: dict[tuple[Asset, int], tuple[float, float]] = {}
    figures: dict[str, Any] = {}
    for (asset, info), study in zip(mine, studies, strict=True):
        whole, wrong = study.answer
        if not np.isfinite(whole) or whole == 0.0:
            continue
        weigh = info.size / whole  # each matrix by its size, whatever the size of its numbers
        for bits, error in wrong.items():
            freed = info.nbytes - _packed(info, bits)
            if freed > 0:
                own = _edge(asset, asset.label(info.name), bits, freed, sqrt(error / whole))
                parts.setdefault((asset, bits), []).append(own)
                a, b = sums.get((asset, bits), (0.0, 0.0))
                sums[asset, bits] = a + error * weigh, b + info.size
    found = []
    for (asset, bits), some in parts.items():
        over, under = sums[asset, bits]
        freed, error = sum(e.bytes_freed for e in some), sqrt(over / under)
        figures.setdefault(asset.path, {})[f"{bits} bits"] = {
            "matrices": len(some),
            "bytes_freed": freed,
            "error": error,
        }
        found.append(Finding(_edge(asset, asset.path, bits, freed, error), tuple(some)))
    return Findings(tuple(found), figures)


def _packed(info: TensorInfo, bits: int) -> int:
    """Bytes with a scale in the tensor's own type for each group."""
    columns = info.shape[1]
    group = next((g for g in _GROUPS if columns % g == 0), columns)
    return -(-info.size * bits // 8) + info.size // group * info.dtype.bytes


def _edge(asset: Asset, target: str, bits: int, freed: int, error: float) -> Edge:
    name, more = _WIDTHS[bits]
    words = None
    if asset.checkpoint.config() is not None:  # a bare file of weights is no model that could be run
        words = f"nett weights {name} {shlex.quote(asset.path)} --bits {bits}{more} --eval TEXT --out OUT"
    return Edge("quantisation_head_room", target, (), f"weights/{name}", freed, None, error, "measured", words)


def _may(info: TensorInfo) -> bool:
    """A matrix inside a layer, stored as floats."""
    stored = info.nbytes == info.size * info.dtype.bytes and info.dtype.is_float and info.dtype.bits >= 16
    return stored and len(info.shape) == 2 and info.nbytes >= _LEAST and layer_of(info.name) is not None
