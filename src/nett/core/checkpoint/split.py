"""Matrices that lie in a file as a low-rank part and whole rows of what that leaves: W = L R + S.

``NAME.left`` [out, r], ``NAME.right`` [r, in], ``NAME.rows`` int32 [n] and ``NAME.rest`` [n, in] stand for the matrix NAME, of the
type of ``left``. The config says so (``quant_method``); and since stock loaders pass over a method that they do not know, with weights by
chance in the place of what they miss, the files are not called as they look for them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.dtypes import Array, encode
from nett.core.errors import Refused

METHOD = "nett_split"  # quant_method of the config
STEM = "split"  # of the files
KEY = "quantization_config"
PARTS = ("left", "right", "rows", "rest")


def marked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says that matrices lie split."""
    return {**config, KEY: {"quant_method": METHOD}}


def is_split(config: Any) -> bool:
    """Whether a config (an object of transformers) says so."""
    said = getattr(config, KEY, None)
    return isinstance(said, dict) and said.get("quant_method") == METHOD


def opened_parts(raw: Checkpoint) -> Checkpoint:
    """The dense model that ``raw`` stands for where its config says that it lies in parts; ``raw`` where it does not."""
    config = raw.config() or {}
    said = config.get(KEY)
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        return raw
    try:
        return SplitCheckpoint(raw, config)
    except BaseException:
        raw.close()
        raise


@final
class SplitCheckpoint(Checkpoint):
    """The dense model: every matrix multiplied out when it is read, in float32, and rounded to its type."""

    format = "split"

    def __init__(self, raw: Checkpoint, config: Mapping[str, Any]) -> None:
        self._raw, self.path, self.files, self.metadata = raw, raw.path, raw.files, raw.metadata
        self._config = {k: v for k, v in config.items() if k != KEY}
        self._lock, self._last = threading.Lock(), ("", np.empty(0))
        tensors: dict[str, TensorInfo] = {}
        for name, info in raw.tensors.items():
            whole, _, part = name.rpartition(".")
            if part not in PARTS:
                tensors[name] = info
            elif part == "left":
                tensors[whole] = self._info(whole)
            elif f"{whole}.left" not in raw.tensors:
                raise Refused(f"tensor {name!r} is a part of a matrix whose {whole}.left is missing", where=self.path)
        self.tensors = tensors

    def _info(self, name: str) -> TensorInfo:
        parts = {part: self._raw.tensors.get(f"{name}.{part}") for part in PARTS}
        for part, info in parts.items():
            if info is None:
                raise Refused(f"the matrix {name!r} lacks its part {name}.{part}", where=self.path)
        left, right, rows, rest = (parts[part] for part in PARTS)
        assert left is not None and right is not None and rows is not None and rest is not None
        shapes = [p.shape for p in (left, right, rows, rest)]
        good = [len(s) for s in shapes] == [2, 2, 1, 2] and rows.dtype.name == "I32"
        if not good or shapes[0][1] != shapes[1][0] or shapes[3] != (shapes[2][0], shapes[1][1]):
            raise Refused(f"the parts of {name!r} do not fit together: {[list(s) for s in shapes]}", where=self.path)
        size = sum(p.nbytes for p in (left, right, rows, rest))
        return TensorInfo(name, left.dtype, (left.shape[0], right.shape[1]), "low rank and rows", size)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        info = self.tensors[name]
        if info.stored != "low rank and rows":
            return self._raw.read(name, start, stop)
        with self._lock:  # whole at a time, since parts of a product are rounded otherwise than all of it
            if self._last[0] != name:
                self._last = (name, self._made(name, info))
            return self._last[1][start:stop].copy()

    def _made(self, name: str, info: TensorInfo) -> Array:
        left, right, rows, rest = (
            self._raw.values(f"{name}.{p}").reshape(self._raw.tensors[f"{name}.{p}"].shape) for p in PARTS
        )
        if rows.size and (rows.min() < 0 or rows.max() >= info.shape[0]):
            raise Refused(f"{name}.rows names the row {int(rows.max())} of {info.shape[0]}", where=self.path)
        value = left.astype(np.float32) @ right.astype(np.float32)
        value[rows] += rest
        return encode(value.reshape(-1), info.dtype)

    def close(self) -> None:
        self._raw.close()

    def beside(self) -> dict[str, bytes] | None:
        return self._raw.beside()

    def config(self) -> dict[str, Any] | None:
        return dict(self._config)
