"""All tensors of a checkpoint at once, read and decoded on several threads."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint
from nett.core.dtypes import Array, decode
from nett.core.runner import Pool, thread_count

RUN = 1 << 21  # elements that a thread reads at a time
SLAB = 1 << 25  # bytes that small tensors are cut from
LARGE = 1 << 22  # bytes from which NumPy asks for huge pages
ALIGN = 64


def read_whole(checkpoint: Checkpoint, *, decoded: bool = True, threads: int = 0) -> dict[str, Array]:
    """Name -> array in the tensor's shape, in the checkpoint's order; as :meth:`Checkpoint.values` gives it, or
    :meth:`Checkpoint.read` where it is not to be ``decoded``. Holds no more beside the result than a run a thread."""
    flat: dict[str, Array] = {}
    runs = []
    room = _Room(sum(i.nbytes for i in checkpoint.tensors.values()))
    for name, info in checkpoint.tensors.items():
        raw = np.empty(0, info.dtype.raw)
        flat[name] = room.array(info.size, decode(raw, info.dtype).dtype if decoded else raw.dtype)
        runs += [(name, at, min(at + RUN, info.size)) for at in range(0, info.size, RUN)]

    def one(run: tuple[str, int, int]) -> None:
        name, start, stop = run
        target = flat[name][start:stop]
        if target.dtype == np.dtype(checkpoint.tensors[name].dtype.raw):  # nothing to decode
            checkpoint.read_into(name, start, target)
        else:
            target[:] = checkpoint.values(name, start, stop)

    pool = Pool(thread_count(threads))
    try:
        for _ in pool.ordered(one, sorted(runs, key=lambda r: r[1] - r[2]), ahead=8):  # long runs first: an even end
            pass
    finally:
        pool.close()
    return {name: flat[name].reshape(info.shape) for name, info in checkpoint.tensors.items()}


@final
class _Room:
    """Memory for many arrays. Small ones are cut from slabs, which the system gives in huge pages: to give it page by
    page takes about as long as to decode into it. A small array that outlives the others keeps its slab."""

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes  # about what is still to come
        self._slab = np.empty(0, np.uint8)

    def array(self, size: int, dtype: np.dtype[Any]) -> Array:
        nbytes = size * dtype.itemsize
        self._left -= nbytes
        if nbytes >= LARGE:
            return np.empty(size, dtype)
        taken = -(-nbytes // ALIGN) * ALIGN
        if taken > self._slab.size:
            self._slab = np.empty(max(taken, min(SLAB, nbytes + max(0, self._left))), np.uint8)
        cut, self._slab = self._slab[:nbytes], self._slab[taken:]
        return cut.view(dtype)
