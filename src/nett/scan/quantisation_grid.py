"""Floats that were made from integers and scales, and hold no more."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, final

from nett.core.checkpoint import TensorInfo
from nett.core.dtypes import Array, Dtype
from nett.core.edge import Edge
from nett.core.grid import Grid
from nett.core.layers import layer_of
from nett.core.registry import method
from nett.core.sweep import Fold, Pass
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe

_SMALL = 1 << 12  # bytes; what is smaller, a store keeps with the rest of its file
_NONE = -1
_RUN = 1 << 11  # elements that a grid is tried on first


@final
class OnGrid(Fold):
    """The first of the grids that gives back every bit of every unit, by its place: (place, whether that is sure).

    The place is -1 if there is no such grid, None if no unit has two different numbers. It is not sure where the units
    do not all lie on the same grid: then it is the last that one of them needed, and ``first`` of another reading.
    """

    def __init__(self, dtype: Dtype, size: int, first: int | None = None) -> None:
        from nett.core.grid import grids

        self._dtype, self._first, self.grids = dtype, first, grids(dtype, size)
        self._none = False  # a hint for the units to come, whatever thread they run on

    def look(self, pieces: Sequence[Array]) -> int | None:
        from nett.core.grid import hopeless, pack

        raw = pieces[0]
        if self._none:
            return _NONE
        if self._first is None and bool((raw == raw[0]).all()):
            return None
        if not hopeless(raw, self._dtype):
            for place in range(self._first or 0, len(self.grids)):
                start, grid = raw[:_RUN], self.grids[place]
                if pack(start, self._dtype, grid) is not None and pack(raw, self._dtype, grid) is not None:
                    return place
        self._none = True
        return _NONE

    def join(self, before: Any, unit: int | None) -> tuple[int | None, bool]:
        if before is None:
            return unit, True
        place, sure = before
        if _NONE in (place, unit):
            return _NONE, True
        if place is None or unit is None:
            return (unit if place is None else place), sure and place is unit
        return max(place, unit), sure and place == unit

    def enough(self, seen: Any) -> bool:
        return bool(seen[0] == _NONE)


@method(title="Quantisation grids", kind="measure", guarantee="exact", grain="stream", command=True)
@probe
def quantisation_grid(assets: Sequence[Asset]) -> Probe:
    """Find float tensors that lie on a quantisation grid, such as a dequantised GGUF, and re-pack without loss.

    Looked for are the blocks of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, and codes of 2 to 8 bits with a float32 scale (and
    a minimum) for each 16 to 1,024 elements, among which are the sub-blocks of K-quants. The tensors may have been
    rounded to float16 or bfloat16 since. What loaders can read packed is a finding of its own: a store keeps more.

    When to use: on checkpoints that came from a GGUF, or from tools that quantise and save floats.
    When not: to find out what quantising would cost; that needs data.
    Guarantee: exact. Codes and scales give back every bit of every element, or the tensor is no finding.
    Cost: a few thousand elements of a tensor that lies on no grid; one reading of the others, shared with other probes.
    Source: llama.cpp's formats as the gguf package dequantises them; no paper.
    """
    mine = [(asset, info) for asset in assets for info in asset.checkpoint.tensors.values() if _may(info)]
    unsure: list[tuple[Asset, TensorInfo, int | None]] = [(asset, info, None) for asset, info in mine]
    lying: dict[tuple[Asset, str], Grid] = {}
    while unsure:
        folds = [OnGrid(info.dtype, info.size, first) for _, info, first in unsure]
        passes = [Pass((asset.source(info.name),), f) for (asset, info, _), f in zip(unsure, folds, strict=True)]
        yield passes
        again: list[tuple[Asset, TensorInfo, int | None]] = []
        for (asset, info, _), fold, one in zip(unsure, folds, passes, strict=True):
            place, sure = one.answer
            if place is None or place == _NONE:
                continue
            if sure:
                lying[asset, info.name] = fold.grids[place]
            else:
                again.append((asset, info, place))
        unsure = again
    parts: dict[Asset, list[Edge]] = {}
    figures: dict[str, Any] = {}
    for (asset, name), grid in sorted(lying.items(), key=lambda item: (item[0][0].path, item[0][1])):
        info = asset.checkpoint.tensors[name]
        own = figures.setdefault(asset.path, {"tensors": 0, "bytes_freed": 0, "grids": {}})
        freed = info.nbytes - ceil(info.size * grid.bits / 8)
        own["tensors"] += 1
        own["bytes_freed"] += freed
        own["grids"][grid.name] = own["grids"].get(grid.name, 0) + info.size
        parts.setdefault(asset, []).append(_edge(asset, asset.label(name), freed))
    found = [Finding(_edge(a, a.path, sum(e.bytes_freed for e in some)), tuple(some)) for a, some in parts.items()]
    found += _repackable(lying)
    return Findings(tuple(found), figures)


def _repackable(lying: Mapping[tuple[Asset, str], Grid]) -> list[Finding]:
    """Of models that could be run: the layers' matrices that compressed-tensors can hold as they are, whole numbers times a
    scale. (Grids with a minimum only where that is a whole multiple of the scale, which re-packing tries.)"""
    parts: dict[Asset, list[Edge]] = {}
    for (asset, name), grid in sorted(lying.items(), key=lambda item: (item[0][0].path, item[0][1])):
        info = asset.checkpoint.tensors[name]
        inside = len(info.shape) == 2 and info.shape[1] % grid.group == 0 and layer_of(name) is not None
        if not inside or grid.minimum or grid.zeros or asset.checkpoint.config() is None:
            continue
        packed = ceil(info.size * grid.width / 8) + info.size // grid.group * info.dtype.bytes
        words = f"nett weights repack {shlex.quote(asset.path)} --out OUT"
        label, freed = asset.label(name), info.nbytes - packed
        if freed > 0:
            edge = Edge("repackable_grid", label, (), "weights/repack", freed, None, 0.0, "exact", words)
            parts.setdefault(asset, []).append(edge)
    return [
        Finding(replace(some[0], target=a.path, bytes_freed=sum(e.bytes_freed for e in some)), tuple(some))
        for a, some in parts.items()
    ]


def _edge(asset: Asset, target: str, freed: int) -> Edge:
    words = f"nett store add {shlex.quote(asset.path)} --into STORE"
    return Edge("quantisation_grid", target, (), "store/add", freed, None, 0.0, "exact", words)


def _may(info: TensorInfo) -> bool:
    return info.dtype.name in ("F32", "F16", "BF16") and _SMALL <= info.nbytes == info.size * info.dtype.bytes
