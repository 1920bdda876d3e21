"""What the bytes of a tensor say less than they could: exponents that hardly differ, planes of zeros."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import ceil
from typing import Any, final

import numpy as np

from nett.core.checkpoint import TensorInfo
from nett.core.dtypes import Array, Dtype
from nett.core.edge import Edge
from nett.core.registry import method
from nett.core.sweep import Fold, Pass
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe

_RUNS, _RUN = 8, 1 << 9  # of each unit: runs, and elements of a run
_SMALL = 1 << 12  # bytes; what is smaller, a store keeps with the rest of its file
_FULL = 7.9  # bits a byte beyond which no coder is tried
_T = 2.365  # 97.5 % of Student's t with one degree of freedom less than there are runs
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@final
class Planes(Fold):
    """How often each byte occurs in each plane, the sign moved behind the fraction: counts (run, plane, 256)."""

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = dtype

    def look(self, pieces: Sequence[Array]) -> Array:
        x = pieces[0].view(_UNSIGNED[self._dtype.bytes])
        if x.size > _RUNS * _RUN:
            starts = np.arange(_RUNS) * (x.size - _RUN) // (_RUNS - 1)
            x = np.concatenate([x[at : at + _RUN] for at in starts])
        if self._dtype.is_float and self._dtype.bits > 8:
            x = (x << 1) | (x >> (self._dtype.bits - 1))
        run = np.arange(x.size) * _RUNS // max(1, x.size) * 256
        planes = x.view(np.uint8).reshape(x.size, self._dtype.bytes)
        counts = [np.bincount(planes[:, k] + run, minlength=256 * _RUNS) for k in range(planes.shape[1])]
        return np.stack([c.reshape(_RUNS, 256) for c in counts], axis=1)

    def join(self, before: Any, unit: Array) -> Array:
        return unit if before is None else before + unit


def entropies(counts: Array) -> tuple[Array, Array]:
    """Of counts (run, plane, 256): bits a byte of each plane, and half the width of its 95 % interval, from how much
    the runs differ in the length of a code that is best for all of them."""
    whole = counts.sum(axis=0)
    share = whole / np.maximum(1, whole.sum(axis=-1, keepdims=True))
    length = -np.log2(np.where(share > 0, share, 1.0))
    runs = counts.sum(axis=-1)
    each = (counts * length).sum(axis=-1) / np.maximum(1, runs)
    return (share * length).sum(axis=-1), _T * each.std(axis=0, ddof=1) / np.sqrt(len(counts))


@method(title="Byte planes", kind="measure", guarantee="exact", grain="stream", command=True)
@probe
def byte_planes(assets: Sequence[Asset]) -> Probe:
    """Estimate what an entropy coder would free without loss: the order-0 entropy of each byte plane of each tensor.

    The bytes of equal place in all elements of a tensor are a plane; of floats, the sign goes to the fraction, so
    that the exponent fills one. An ordinary bfloat16 file holds about a third of air in its exponents.

    When to use: on any checkpoint that is kept more than it is loaded.
    When not: on GGUF files, whose quantised blocks are not looked at.
    Guarantee: exact: a store gives back every bit. How many bytes that frees is estimated where a tensor has more
    than 4,096 elements: of each 262,144, 8 runs of 512 are counted, and the lower end of the 95 % interval is said.
    Cost: one reading, shared with duplicate_tensors and narrower_dtype.
    Source: C. E. Shannon, "A Mathematical Theory of Communication", 1948, section 6; no paper of the catalogue.
    """
    mine = [(asset, info) for asset in assets for info in asset.checkpoint.tensors.values() if _is_plain(info)]
    passes = [Pass((asset.source(info.name),), Planes(info.dtype)) for asset, info in mine]
    yield passes
    parts: dict[Asset, list[Edge]] = {}
    figures: dict[str, Any] = {}
    for (asset, info), one in zip(mine, passes, strict=True):
        bits, error = entropies(one.answer)
        full = bits > _FULL
        coded = ceil(float(np.where(full, 8.0, bits).mean() / 8) * info.nbytes)
        off = ceil(float(np.where(full, 0.0, error).mean() / 8) * info.nbytes) if info.size > _RUNS * _RUN else 0
        own = figures.setdefault(asset.path, {"bytes": 0, "estimated_bytes": 0, "error_95": 0, "bits": {}})
        for key, value in (("bytes", info.nbytes), ("estimated_bytes", coded), ("error_95", off)):
            own[key] += value
        weighed = own["bits"].setdefault(info.dtype.name, [])
        weighed.append((info.nbytes, bits))
        freed = info.nbytes - coded - off
        if freed > 0:
            parts.setdefault(asset, []).append(_edge(asset, asset.label(info.name), freed))
    for own in figures.values():  # of each type, the bits a byte of its planes, lowest byte first
        own["bits"] = {
            name: [round(float(b), 3) for b in np.average([b for _, b in some], axis=0, weights=[n for n, _ in some])]
            for name, some in own["bits"].items()
        }
    found = [Finding(_edge(a, a.path, sum(e.bytes_freed for e in some)), tuple(some)) for a, some in parts.items()]
    return Findings(tuple(found), figures)


def _edge(asset: Asset, target: str, freed: int) -> Edge:
    words = f"nett store add {shlex.quote(asset.path)} --into STORE"
    return Edge("byte_planes", target, (), "store/add", freed, None, 0.0, "exact", words)


def _is_plain(info: TensorInfo) -> bool:
    """Large enough for an object of its own, and its elements are what lies in the file."""
    return info.dtype.bits % 8 == 0 and _SMALL <= info.nbytes == info.size * info.dtype.bytes
