"""Weights that lie on a quantisation grid, on sampled pages and on whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nett.core.dtypes import DTYPES, Array, Dtype
from nett.scan.disk.layout import Layout
from nett.scan.disk.sample import Sample

TRIED = 2000  # files that are tried; of more, each so manieth, and all whose header is that of one on a grid


def dtype_of(layout: Layout, tensor: int) -> Dtype | None:
    """The float type that a grid may hide in; None for other tensors."""
    return DTYPES.get(layout.types[tensor]) if layout.types[tensor] in ("F32", "F16", "BF16") else None


def of_pages(layout: Layout, sample: Sample, pages: Array, step: int) -> Array:
    """Packed bytes a byte of each page that a sample codes, (files, pages); 1 where no grid holds it. Every ``step``-th
    file is tried, and all if one of them lies on a grid."""
    from nett.core.grid import hopeless, sniff

    owner = sample.tensors[np.searchsorted(sample.first, sample.coded, "right") - 1].tolist()
    found = np.ones((len(pages), len(owner)))
    able = [k for k, t in enumerate(owner) if dtype_of(layout, t) is not None]

    def piece(file: int, k: int) -> tuple[Array, Any]:
        dtype = dtype_of(layout, owner[k])
        return pages[file, sample.coded[k]].view(dtype.raw if dtype else "u1"), dtype

    def lies(file: int) -> bool:
        return any(not hopeless(*piece(file, k)) for k in {able[0], able[len(able) // 2]})

    if not able or not any(lies(i) for i in range(0, len(pages), step)):
        return found
    for file in range(len(pages)):
        if lies(file):
            for k in able:
                raw, dtype = piece(file, k)
                grid = sniff([raw], dtype, int(layout.nbytes[owner[k]]) // dtype.bytes)
                found[file, k] = grid.bits / dtype.bits if grid is not None else 1.0
    return found


def of_tensor(blocks: Callable[[], Iterator[Array]], nbytes: int, dtype: Dtype) -> float:
    """Packed bytes a byte of a tensor, 1 where no grid holds every element; ``blocks`` reads it again each time."""
    from nett.scan.quantisation_grid import OnGrid

    first: int | None = None
    while True:
        fold = OnGrid(dtype, nbytes // dtype.bytes, first)
        seen: Any = None
        for raw in blocks():
            seen = fold.join(seen, fold.look([raw.view(dtype.raw)]))
            if fold.enough(seen):
                return 1.0
        if seen is None or seen[0] is None:
            return 1.0
        place, sure = seen
        if sure or place == first:
            return float(fold.grids[place].bits / dtype.bits)
        first = place
