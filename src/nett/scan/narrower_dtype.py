"""Values that need fewer bits than they have."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from nett.core.checkpoint import TensorInfo
from nett.core.dtypes import DTYPES, Array, Dtype, decode, encode
from nett.core.edge import Edge
from nett.core.registry import method
from nett.core.sweep import Fold, Pass
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe

_FLOATS = {"F64": ("BF16", "F16", "F32"), "F32": ("BF16", "F16")}
_INTS = ("I8", "U8", "I16", "U16", "I32", "U32")
_BLOCK = 1 << 16  # elements: temporaries stay in a core's cache
_INFINITY, _HALF_OVERFLOW = 0x7F800000, 0x47800000  # bits of |x| in float32: infinity, 65536


def narrower(dtype: Dtype) -> tuple[str, ...]:
    """Types with fewer bytes that values of ``dtype`` might fit, narrowest first."""
    if dtype.is_float:
        return _FLOATS.get(dtype.name, ())
    if dtype.kind != "int":
        return ()
    fewer = [n for n in _INTS if DTYPES[n].bits < dtype.bits]
    return tuple(sorted(fewer, key=lambda n: (DTYPES[n].bits, n[0] != dtype.name[0])))


def fits(values: Array, dtype: Dtype, wanted: frozenset[str]) -> frozenset[str]:
    """Which of the types ``wanted`` hold every element: converted and back, all bits are the same.

    ``values``: raw elements of ``dtype``, 1-D. NaN counts by its bits, -0.0 and subnormals too.
    """
    if not wanted or not values.size:
        return wanted
    if dtype.kind == "int":
        low, high = int(values.min()), int(values.max())
        spans = {n: np.iinfo(DTYPES[n].raw) for n in wanted}
        return frozenset(n for n, span in spans.items() if span.min <= low and high <= span.max)
    if dtype.name == "F64":
        if int(np.bitwise_or.reduce(values.view(np.uint64))) & ((1 << 29) - 1):
            return frozenset()
        for at in range(0, values.size, _BLOCK):
            block = values[at : at + _BLOCK]
            with np.errstate(all="ignore"):
                single = block.astype(np.float32)
                if not np.array_equal(single.astype(np.float64).view(np.uint64), block.view(np.uint64)):
                    return frozenset()
            wanted = fits(single, DTYPES["F32"], wanted - {"F32"}) | (wanted & {"F32"})
        return wanted
    bits = values.view(np.uint32)
    low_bits = int(np.bitwise_or.reduce(bits))
    positive, any_sign = int(values.view(np.int32).max()), int(bits.max())
    largest = max(positive, any_sign & 0x7FFFFFFF if any_sign >> 31 else 0, 0)
    kept = set()
    if "BF16" in wanted and not low_bits & 0xFFFF and (largest <= _INFINITY or _round_trips(values, "BF16")):
        kept.add("BF16")
    if "F16" in wanted and not low_bits & 0x1FFF and _fits_half(values, largest):
        kept.add("F16")
    return frozenset(kept)


def _fits_half(values: Array, largest: int) -> bool:
    """float32 with at most ten fraction bits, none larger than ``largest`` in bits, as float16."""
    if largest >= _HALF_OVERFLOW:
        return _round_trips(values, "F16")
    for at in range(0, values.size, _BLOCK):
        scaled = values[at : at + _BLOCK] * np.float32(2.0**24)  # float16 is whole multiples of 2^-24
        if not np.array_equal(np.rint(scaled), scaled):
            return False
    return True


def _round_trips(values: Array, name: str) -> bool:
    """The definition itself, by nett's own conversion; for what holds NaN or infinity."""
    with np.errstate(all="ignore"):
        back = decode(encode(values, DTYPES[name]), DTYPES[name])
    return bool(np.array_equal(back.view(np.uint32), values.view(np.uint32)))


@final
class Fits(Fold):
    """Which narrower types hold a whole tensor; stops once none is left."""

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = dtype
        self._open = frozenset(narrower(dtype))

    def look(self, pieces: Sequence[Array]) -> frozenset[str]:
        held = fits(pieces[0], self._dtype, self._open)
        self._open = self._open & held  # a hint for the units to come, whatever thread they run on
        return held

    def join(self, before: Any, unit: frozenset[str]) -> frozenset[str]:
        return unit if before is None else before & unit

    def enough(self, seen: Any) -> bool:
        return not seen


@method(title="Narrower types", kind="measure", guarantee="exact", grain="stream", command=True)
@probe
def narrower_dtype(assets: Sequence[Asset]) -> Probe:
    """Find tensors whose values all fit a narrower type without loss.

    float64 in float32, float16 or bfloat16; float32 in float16 or bfloat16; integers in shorter ones. A value
    fits if it comes back with the same bits, NaN payloads, signed zeros and subnormals included.

    When to use: on checkpoints that were saved wider than they were trained, or widened by a conversion.
    When not: to find out whether rounding would do harm; that is quantization.
    Guarantee: exact. Every element was tried.
    Cost: one reading, shared with duplicate_tensors; a tensor that fits nothing is left at its first unit.
    Source: IEEE 754 and the bfloat16 format; no paper.
    """
    mine = [
        (asset, info)
        for asset in assets
        for info in asset.checkpoint.tensors.values()
        if info.size and narrower(info.dtype) and info.nbytes == info.size * info.dtype.bytes
    ]
    passes = [Pass((asset.source(info.name),), Fits(info.dtype)) for asset, info in mine]
    yield passes
    held: dict[Asset, dict[str, frozenset[str]]] = {}
    for (asset, info), one in zip(mine, passes, strict=True):
        held.setdefault(asset, {})[info.name] = one.answer or frozenset()
    found = [edge for asset in held for edge in _edges(asset, held[asset])]
    return Findings(tuple(map(Finding, found)), {"tensors": len(found), "bytes": sum(e.bytes_freed for e in found)})


def _edges(asset: Asset, held: dict[str, frozenset[str]]) -> list[Edge]:
    whole = _whole(asset, held)
    edges = []
    for name, types in held.items():
        info = asset.checkpoint.tensors[name]
        if not types:
            continue
        command = whole is not None and info.dtype.is_float
        chosen = whole if command and whole is not None else _narrowest(info, types)
        freed = info.nbytes - info.size * DTYPES[chosen].bytes
        words = f"nett convert {shlex.quote(asset.path)} OUT --dtype {DTYPES[chosen].alias}" if command else None
        method_name = "convert" if command else None
        edges.append(Edge("narrower_dtype", asset.label(name), (), method_name, freed, None, 0.0, "exact", words))
    return edges


def _narrowest(info: TensorInfo, types: frozenset[str]) -> str:
    return next(n for n in narrower(info.dtype) if n in types)


def _whole(asset: Asset, held: dict[str, frozenset[str]]) -> str | None:
    """The narrowest type that holds every float tensor of the checkpoint, and is narrower than one of them."""
    floats = [t for t in asset.checkpoint.tensors.values() if t.dtype.is_float and t.size]
    for name in ("BF16", "F16", "F32"):
        fit = all(t.stored == name or name in held.get(t.name, ()) for t in floats)
        if fit and any(t.stored != name for t in floats):
            return name
    return None
