"""Products of bit planes on the CPU: exclusive or and population count, compiled for the processor that it runs on.

Eight rows of the weights lie beside each other, word by word (``tiles``), so that a vector holds one word of eight rows and
a word of the input goes to all of them (:mod:`nett.weights.popcount_kernels`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nett.core.dtypes import Array
from nett.weights.bit_planes import Layout, largest, pack, products
from nett.weights.popcount_kernels import LANES, exact_product, round_and_pack, scaled_product

_NEAR = 1 << 17  # bytes of inputs that stay in the near cache while the weights go by
_ALONE = 1 << 18  # words to be counted below which threads cost more than they bring


def tiled(planes: Array) -> Array:
    """``[rows, bits, words]`` as ``[tiles, bits, words, 8]``; rows that fill the last tile are zero."""
    rows, bits, words = planes.shape
    whole = np.zeros((-(-rows // LANES) * LANES, bits, words), np.uint64)
    whole[:rows] = planes
    return np.ascontiguousarray(whole.reshape(-1, LANES, bits, words).transpose(0, 2, 3, 1))


def untiled(tiles: Array, rows: int) -> Array:
    """The inverse of :func:`tiled`."""
    count, bits, words, _ = tiles.shape
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2).reshape(count * LANES, bits, words)[:rows])


def exact(tiles: Array, rows: int, inputs: Array, length: int, threads: int = 0) -> Array:
    """Weights times inputs, int64 ``[inputs, rows]``; ``inputs`` uint64 ``[inputs, bits, words]`` in one group."""
    if not compiled():
        return products(untiled(tiles, rows), inputs, Layout.of(length))[:, :, 0]
    out = np.empty((len(inputs), rows), np.int64)
    near = _near(inputs)
    _in_threads(
        lambda a, b: exact_product(tiles, inputs, length, near, a, b, out), len(tiles), _cost(tiles, inputs), threads
    )
    return out


def scaled(tiles: Array, scale: Array, inputs: Array, input_scale: Array, layout: Layout, threads: int = 0) -> Array:
    """The same with every group's product times its ``scale`` [rows, groups] and ``input_scale`` [inputs]: float32
    ``[inputs, rows]``, summed in float64."""
    if not compiled():
        found = products(untiled(tiles, len(scale)), inputs, layout)
        return np.asarray((found * scale).sum(axis=2) * input_scale[:, None], np.float32)
    out = np.empty((len(inputs), len(scale)), np.float32)
    near, top = _near(inputs), layout.lengths * largest(tiles.shape[1]) * largest(inputs.shape[1])

    def work(first: int, last: int) -> None:
        scaled_product(tiles, scale, inputs, input_scale, layout.group_words, top, near, first, last, out)

    _in_threads(work, len(tiles), _cost(tiles, inputs), threads)
    return out


def rounded(values: Array, bits: int, step: Array, layout: Layout, threads: int = 0) -> Array:
    """float32 ``[inputs, length]`` at the nearest odd multiples of ``step`` [inputs], as planes."""
    planes = np.zeros((len(values), bits, layout.words), np.uint64)
    if compiled():
        args = (values, bits, step, layout.group, layout.group_words)
        _in_threads(lambda a, b: round_and_pack(*args, a, b, planes), len(values), values.size, threads)
        return planes
    half = 1 << (bits - 1)
    floors = np.floor(values / (2 * step[:, None])).clip(-half, half - 1)
    return pack((2 * floors + 1).astype(np.int16), bits, layout.group)


def compiled() -> bool:
    """Whether numba compiles here (``NUMBA_DISABLE_JIT`` says no); NumPy does the work otherwise."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def _cost(tiles: Array, inputs: Array) -> int:
    return int(tiles.size * len(inputs) * inputs.shape[1])


def _near(inputs: Array) -> int:
    return max(1, _NEAR // max(1, inputs[0].nbytes)) if len(inputs) else 1


def _in_threads(work: Callable[[int, int], None], count: int, cost: int, threads: int) -> None:
    """``work(first, last)`` on parts of ``range(count)``, in threads where it is worth it."""
    threads = min(threads or len(os.sched_getaffinity(0)), count)
    if threads <= 1 or cost < _ALONE:
        work(0, count)
        return
    bounds = [count * k // threads for k in range(threads + 1)]
    others = [_pool(threads - 1, os.getpid()).submit(work, *bounds[k : k + 2]) for k in range(1, threads)]
    work(bounds[0], bounds[1])
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"nett-popcount-{process}")
