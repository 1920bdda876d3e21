"""A compressed-tensors folder as the dense model that it stands for: names, shapes and values of its weights.

Values are those of compressed-tensors' own decompression, bit for bit: (q - zero point) * scale, rounded to the
type of the scale. Blocks that do not divide the matrix follow ``block_structure`` (the package's decompression
guesses their size from the shapes, and misses it there).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.compressed_config import PACKED, Scheme, candidates, schemes_of
from nett.core.checkpoint.compressed_numbers import spread, unpacked_columns, unpacked_rows, word_rows
from nett.core.dtypes import Array, encode
from nett.core.errors import Refused

CONFIG_KEYS = ("quantization_config", "compression_config")  # the second in files of 2024
_PIECE = 1 << 18  # elements dequantised at once
_PARTS = ("packed", "scale", "zero_point", "shape", "g_idx")
_BESIDE = tuple(  # what quantises activations and caches while the model runs
    f"{of}_{part}" for of in ("input", "output", "q", "k", "v") for part in ("scale", "zero_point", "global_scale")
)


@final
@dataclass(frozen=True)
class _Weight:
    """One quantised matrix: the tensors it is made of, and how. ``width``: columns a scale covers."""

    scheme: Scheme
    stored: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None
    order: TensorInfo | None  # group of each column
    rows: int
    columns: int
    width: int
    height: int  # rows that a row of scales covers


@final
class CompressedCheckpoint(Checkpoint):
    """A folder of the compressed-tensors formats pack-quantized, int-, float- and naive-quantized or dense.

    ``skipped``: tensors that are not weights (scales of activations and caches). ``rounded``: modules whose inputs are
    rounded while the model runs -> to how many bits, with a scale a token.
    """

    format = "compressed-tensors"

    def __init__(self, raw: Checkpoint, config: Mapping[str, Any]) -> None:
        self._raw, self.path, self.files = raw, raw.path, raw.files
        self.metadata = raw.metadata
        self._config = {k: v for k, v in config.items() if k not in CONFIG_KEYS}
        said = next(config[k] for k in CONFIG_KEYS if config.get(k))
        where = raw.path / "config.json"
        inner = said.get("quantization_config")  # compression_config wraps it
        schemes = schemes_of({**said, **inner} if isinstance(inner, dict) else said, where)
        self._weights: dict[str, _Weight] = {}
        self._orders: dict[str, Array | None] = {}
        self._lock = threading.Lock()
        self.skipped: tuple[str, ...] = ()
        tensors: dict[str, TensorInfo] = {}
        for name, info in raw.tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf in ("weight", "weight_packed") and f"{module}.weight_scale" in raw.tensors:
                if leaf == "weight" and info.dtype.is_float and not info.dtype.name.startswith("F8"):
                    tensors[name] = info  # not compressed: the scale is for quantising it while the model runs
                    continue
                weight = self._weight(module, info, schemes)
                parts = [p for p in (weight.scale, weight.zero, weight.order, info) if p is not None]
                dense = f"{module}.weight"
                self._weights[dense] = weight
                tensors[dense] = TensorInfo(
                    dense,
                    weight.scale.dtype,
                    (weight.rows, weight.columns),
                    weight.scheme.label,
                    sum(p.nbytes for p in parts),
                )
            elif leaf in _BESIDE or leaf in [f"weight_{part}" for part in _PARTS[1:]]:
                self.skipped += (name,) if leaf in _BESIDE else ()
            elif leaf.startswith("weight_") and leaf.endswith(("packed", "scale")):
                raise self._wrong(name, "belongs to a format of compressed-tensors that nett does not read")
            elif leaf == "weight" and not info.dtype.is_float:
                raise self._wrong(name, f"holds {info.dtype.name} numbers, but {module}.weight_scale is missing")
            else:
                tensors[name] = info
        self.tensors = tensors
        rounded = ((name, w.scheme.inputs) for name, w in self._weights.items())
        self.rounded = {name.removesuffix(".weight"): bits for name, bits in rounded if bits}
        self.notes = self._said()

    def _wrong(self, name: str, what: str) -> Refused:
        return Refused(f"tensor {name!r} {what}", where=self.path)

    def _said(self) -> tuple[str, ...]:
        found = f"{self.path} is quantised (compressed-tensors): its weights are taken as the numbers they stand for"
        count = len(self._weights)
        kinds = sorted({w.scheme.label for w in self._weights.values()})
        found += f" ({count:,} matrices: {'; '.join(kinds)})" if kinds else ""
        left = f"; {len(self.skipped):,} scales of activations and caches are left out" if self.skipped else ""
        return (found + left + "; a model written from it is dense, and its config.json has no quantization_config",)

    def _weight(self, module: str, info: TensorInfo, schemes: tuple[Scheme, ...]) -> _Weight:
        """The matrix of a module after the first scheme that may be its and fits its tensors."""
        refused: Refused | None = None
        for scheme in candidates(schemes, module, self.path / "config.json"):
            try:
                return self._fitted(module, info, scheme)
            except Refused as error:
                refused = refused or error
        raise refused or self._wrong(info.name, "is quantised, but no group of quantization_config speaks of it")

    def _fitted(self, module: str, info: TensorInfo, scheme: Scheme) -> _Weight:
        packed = info.name.endswith("_packed")
        if len(info.shape) != 2 or packed != (scheme.format == PACKED):
            raise self._wrong(info.name, f"of shape {list(info.shape)} is not a matrix stored as {scheme.format}")
        wanted = "I32" if packed else "F8_E4M3" if scheme.kind == "float" else "I8"
        if info.dtype.name != wanted:
            raise self._wrong(info.name, f"is {info.dtype.name}, but {scheme.label} is stored as {wanted}")
        rows, columns = self._shape(module, info, scheme) if packed else info.shape
        scale = self._raw.tensors[f"{module}.weight_scale"]
        if not scale.dtype.is_float:
            raise self._wrong(scale.name, f"is {scale.dtype.name}: that is not a scale that nett reads")
        width, height, grid = _grid(scheme, rows, columns)
        shapes: dict[str, list[tuple[int, ...]]] = {
            "tensor": [(), (1,), (1, 1)],
            "channel": [(rows, 1)],
            "group": [grid, (1, grid[1])],
            "block": [grid],
        }
        if scale.shape not in shapes[scheme.strategy]:
            expected = " or ".join(str(list(s)) for s in shapes[scheme.strategy])
            raise self._wrong(
                scale.name,
                f"has the shape {list(scale.shape)}, but {scheme.label} of a {rows} x {columns} matrix needs {expected}",
            )
        if scheme.strategy == "group" and columns % width:
            raise self._wrong(info.name, f"has {columns} columns, not a multiple of the group of {width}")
        zero = self._raw.tensors.get(f"{module}.weight_zero_point")
        if zero is None and not scheme.symmetric:
            raise self._wrong(info.name, "has zero points by quantization_config, but weight_zero_point is missing")
        if zero is not None:
            height_of_zero = -(-rows * scheme.bits // 32)
            as_packed = packed and not scheme.symmetric and zero.dtype.name == "I32"
            needed = (height_of_zero, *scale.shape[1:]) if as_packed else scale.shape
            if zero.shape != needed:
                raise self._wrong(zero.name, f"has the shape {list(zero.shape)}, expected {list(needed)}")
        order = self._raw.tensors.get(f"{module}.weight_g_idx")
        if order is not None and (order.shape != (columns,) or order.dtype.kind != "int" or scheme.strategy != "group"):
            raise self._wrong(order.name, f"has the shape {list(order.shape)}: expected the group of each column")
        return _Weight(scheme, info, scale, zero, order, rows, columns, width, height)

    def _shape(self, module: str, info: TensorInfo, scheme: Scheme) -> tuple[int, int]:
        """Rows and columns: sixteen bytes of the file, which the packed shape must bear out."""
        name = f"{module}.weight_shape"
        said = self._raw.tensors.get(name)
        if said is None or said.size != 2 or said.dtype.kind != "int":
            raise self._wrong(info.name, f"is packed, but {name} does not give its two sizes")
        rows, columns = (int(n) for n in self._raw.read(name))
        if rows != info.shape[0] or columns < 1 or -(-columns * scheme.bits // 32) != info.shape[1]:
            raise self._wrong(
                info.name,
                f"of shape {list(info.shape)} does not hold {rows} x {columns} numbers of {scheme.bits} bits",
            )
        return rows, columns

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        info, weight = self.tensors[name], self._weights.get(name)
        stop = info.size if stop is None else stop
        if weight is None:
            return self._raw.read(name, start, stop)
        out = np.empty(max(0, stop - start), info.dtype.raw)
        step = max(1, _PIECE // weight.columns)
        for first in range(start // weight.columns, -(-stop // weight.columns) if stop > start else 0, step):
            last = min(first + step, -(-stop // weight.columns))
            low, high = max(start, first * weight.columns), min(stop, last * weight.columns)
            with np.errstate(all="ignore"):  # scales that are not finite: whoever reads the values reports them
                values = self._rows(weight, first, last).reshape(-1)
            at = first * weight.columns
            out[low - start : high - start] = encode(values[low - at : high - at], info.dtype)
        return out

    def _rows(self, weight: _Weight, first: int, last: int) -> Array:
        """Rows ``first:last``, dequantised, before rounding to the scale's type."""
        width = weight.stored.shape[1]
        if weight.scheme.format == PACKED:
            words = self._raw.read(weight.stored.name, first * width, last * width).reshape(-1, width)
            numbers = unpacked_rows(words, weight.scheme.bits, weight.columns)
        else:
            numbers = self._raw.values(weight.stored.name, first * width, last * width).reshape(-1, width)
        scale = self._small(weight, weight.scale, first, last)
        values = numbers.astype(scale.dtype)
        order = self._order(weight)
        if weight.zero is not None:
            zero = self._zero_points(weight, weight.zero, first, last).astype(scale.dtype)
            values -= spread(zero, weight.columns, weight.width, order)
        values *= spread(scale, weight.columns, weight.width, order)
        return values

    def _small(self, weight: _Weight, info: TensorInfo, first: int, last: int) -> Array:
        """Scales or plain zero points of rows ``first:last``: ``[rows or 1, groups or 1]``."""
        if len(info.shape) < 2 or info.shape[0] == 1:
            return self._raw.values(info.name).reshape(1, -1)
        groups, high = info.shape[1], weight.height
        low, top = first // high, -(-last // high)
        found = self._raw.values(info.name, low * groups, top * groups).reshape(-1, groups)
        return found[np.arange(first, last) // high - low] if high > 1 else found

    def _zero_points(self, weight: _Weight, info: TensorInfo, first: int, last: int) -> Array:
        if info.dtype.name != "I32" or weight.scheme.format != PACKED or weight.scheme.symmetric:
            return self._small(weight, info, first, last)
        groups = prod(info.shape[1:])
        low, top = word_rows(first, last, weight.scheme.bits)
        words = self._raw.read(info.name, low * groups, top * groups).reshape(-1, groups)
        return unpacked_columns(words, weight.scheme.bits, first, last)

    def _order(self, weight: _Weight) -> Array | None:
        """The group of each column; None where they lie in order. Kept: one small number a column."""
        if weight.order is None:
            return None
        name = weight.order.name
        with self._lock:
            if name not in self._orders:
                index = self._raw.read(name).astype(np.int64)
                if (index == -1).any():  # how compressed-tensors marks an order that was never set
                    self._orders[name] = None
                else:
                    counts = np.bincount(index, minlength=1) if index.min() >= 0 else np.zeros(1)
                    if not (counts == weight.width).all():
                        raise self._wrong(name, f"does not put {weight.width} columns into each group")
                    self._orders[name] = index
            return self._orders[name]

    @property
    def reference(self) -> str:
        return self._raw.reference

    @property
    def folder(self) -> Path:
        return self._raw.folder

    def beside(self) -> dict[str, bytes] | None:
        return self._raw.beside()

    def config(self) -> dict[str, Any] | None:
        """That of the folder, without what is no longer so: the quantisation."""
        return dict(self._config)

    def close(self) -> None:
        self._raw.close()


def _grid(scheme: Scheme, rows: int, columns: int) -> tuple[int, int, tuple[int, int]]:
    """Columns and rows that an entry of a full table of scales covers, and the shape of that table."""
    if scheme.strategy == "group":
        return scheme.group, 1, (rows, -(-columns // scheme.group))
    if scheme.strategy == "block":
        high, wide = scheme.block
        return wide, high, (-(-rows // high), -(-columns // wide))
    return columns, 1, (rows, 1)
