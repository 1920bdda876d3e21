"""Arrays in memory as a checkpoint, so that what reads checkpoints works on plain arrays too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.dtypes import DTYPES, Array
from nett.core.errors import UsageError

_BY_TYPE = {np.dtype(d.raw): d for d in DTYPES.values() if d.alias == np.dtype(d.raw).name}


@final
class ArrayCheckpoint(Checkpoint):
    """Named NumPy arrays. Types that NumPy lacks (bfloat16) cannot come this way."""

    format = "arrays"
    files = ()

    def __init__(self, arrays: Mapping[str, Array], path: Path = Path("arrays")) -> None:
        self.path = path
        self._flat = {name: np.ascontiguousarray(array).reshape(-1) for name, array in arrays.items()}
        self.tensors = {name: self._info(name, array) for name, array in arrays.items()}

    @staticmethod
    def _info(name: str, array: Array) -> TensorInfo:
        dtype = _BY_TYPE.get(array.dtype)
        if dtype is None:
            raise UsageError(f"the array {name!r} has type {array.dtype}; known: {', '.join(map(str, _BY_TYPE))}")
        return TensorInfo(name, dtype, tuple(array.shape), dtype.name, array.nbytes)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        return self._flat[name][start:stop].copy()

    def close(self) -> None:
        self._flat = {}
