"""Where to look into a file, and the looking.

Every tensor of one size is looked into at the same places, whatever file, format, name or type it has, so that equal
tensors have equal pages wherever they lie. Where there are too many tensors to look into all, some layers are taken:
the same ones in every model, since a layer's number is in its name in every format and shard. That a tensor is not
looked into is the only thing that a name decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.scan.disk.ahead import Ahead
from nett.scan.disk.items import Item
from nett.scan.disk.layout import Layout

PAGE = 4096
BUDGET = 60_000  # tensors of all files together: each takes some microseconds, or a tenth of a millisecond of a disk
LEAST = 12  # tensors of a model, where the budget is small
CODED = 6  # pages of a file from which entropies are estimated
ANCHORS = 6  # tensors by whose signs a base is found
BATCH = 1 << 22  # bytes of pages in memory
_GOLDEN = 0.6180339887498949


@final
@dataclass(frozen=True)
class Depth:
    """``layers``: the share of the layers that are looked into; ``pages``: of each tensor."""

    layers: float
    pages: int

    @classmethod
    def of(cls, layouts: Iterable[Layout]) -> Depth:
        """As deep as the budget allows, for one layout a file."""
        given = list(layouts)
        total = sum(len(one.names) for one in given)
        pages = next((p for p in (4, 2) if total * p * 2 <= BUDGET), 1)
        least = LEAST * len(given) / total if total else 1.0
        return cls(min(1.0, max(BUDGET / total if total else 1.0, least)), pages)


@final
@dataclass(frozen=True)
class Sample:
    """What is looked at in each file of a layout. Tensor ``tensors[k]`` has pages ``first[k]:first[k + 1]``, which begin
    at ``offsets`` of the data, and stands for ``weights[k]`` bytes of the file. ``coded``: pages whose entropy is
    estimated; ``anchors``: pages whose signs are compared; ``page``: bytes of a page."""

    tensors: Array
    weights: Array
    first: Array
    offsets: Array
    coded: Array
    anchors: Array
    page: int


def sample_of(layout: Layout, depth: Depth) -> Sample:
    if depth not in layout.memo:
        layout.memo[depth] = _sample(layout, depth)
    found: Sample = layout.memo[depth]
    return found


def places(nbytes: int, pages: int, page: int = PAGE) -> list[int]:
    """Offsets of up to ``pages`` pages of a tensor of ``nbytes``, one in each part of it, multiples of 4096, where groups
    of a quantisation grid begin."""
    align = page
    pages = max(1, min(pages, nbytes // (4 * page)))
    room = nbytes // pages - page
    part = nbytes // pages
    found = []
    for k in range(pages):
        mixed = (nbytes * 0x9E3779B97F4A7C15 + k * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 31) * 0x94D049BB133111EB & (1 << 64) - 1
        found.append((k * part + (mixed >> 11) % max(1, room + 1)) // align * align)
    return found


def _sample(layout: Layout, depth: Depth) -> Sample:
    if layout.format == "opaque":
        return _opaque(layout.size)
    layers = np.array(layout.layers, np.int64).reshape(-1)
    if layout.format == "zip":  # records are numbered, layers are not known: all are taken
        taken = np.ones(len(layers), bool)
    else:
        taken = (layers < 0) | ((layers * _GOLDEN) % 1.0 < depth.layers)
    weights = np.zeros(len(layers))
    for size in np.unique(layout.nbytes):
        here = layout.nbytes == size
        if not (here & taken).any():
            taken[np.flatnonzero(here)[0]] = True
        weights[here & taken] = size * here.sum() / (here & taken).sum()
    tensors = np.flatnonzero(taken)
    offsets = [[int(layout.offsets[t]) + o for o in places(int(layout.nbytes[t]), depth.pages)] for t in tensors]
    first = np.cumsum([0, *map(len, offsets)])
    flat = np.array([o for some in offsets for o in some], np.int64)
    return Sample(tensors, weights[tensors], first, flat, *_chosen(layout, tensors, weights[tensors], first), PAGE)


def _chosen(layout: Layout, tensors: Array, weights: Array, first: Array) -> tuple[Array, Array]:
    """Pages to code, spread over the bytes; pages to compare signs of, of the largest tensors."""
    if not len(tensors):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = np.cumsum(weights)
    wanted = (np.arange(CODED) + 0.5) / CODED * ends[-1]
    at = np.minimum(np.searchsorted(ends, wanted), len(tensors) - 1)
    again = np.array([np.count_nonzero(at[:i] == t) for i, t in enumerate(at)])
    coded = first[at] + again % (first[at + 1] - first[at])
    signed = layout.format == "zip" or layout.format == "safetensors"
    able = np.flatnonzero((layout.widths[tensors] != 8) & (signed | (layout.widths[tensors] > 1)))
    large = able[np.argsort(-layout.nbytes[tensors][able], kind="stable")[:ANCHORS]]
    return np.unique(coded), first[np.sort(large)]


def _opaque(size: int) -> Sample:
    page = min(PAGE, size)
    count = min(16, ceil(size / PAGE)) if size else 0
    offsets = np.unique(np.linspace(0, size - page, count).astype(np.int64)) if count else np.empty(0, np.int64)
    none = np.empty(0, np.int64)
    return Sample(np.array([0]), np.array([float(size)]), np.array([0, len(offsets)]), offsets, none, none, page)


def read_pages(items: Sequence[Item], sample: Sample, memory: Array | None = None) -> tuple[list[Item], Array]:
    """(the files that could be read, their pages (files, pages, bytes)); the others get a ``problem``. ``memory``: to read
    into, where the pages are not kept; new memory costs as much as reading what is in the cache."""
    offsets = sample.offsets
    size = len(items) * len(offsets) * sample.page
    flat = memory[:size] if memory is not None and size <= memory.size else np.empty(size, np.uint8)
    out = flat.reshape(len(items), len(offsets), sample.page)
    read: list[Item] = []
    wanted = offsets.tolist()
    ahead = Ahead(items, lambda item: [(item.start + o, sample.page) for o in wanted])
    for number, item in enumerate(items):
        rows = memoryview(out[len(read)].reshape(-1))
        try:
            fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                for k, offset in enumerate(wanted):
                    view = rows[k * sample.page : (k + 1) * sample.page]
                    if ahead.read(fd, view, item.start + offset, number) != sample.page:
                        raise OSError(0, "became shorter while it was being read")
            finally:
                os.close(fd)
        except OSError as error:
            item.problem = f"cannot be read: {error.strerror}" if error.errno else str(error.strerror)
            continue
        read.append(item)
    return read, out[: len(read)]


def batches(items: Sequence[Item], depth: Depth) -> Iterator[tuple[Sample, list[Item]]]:
    """Files of one layout together, as many as their pages fit in memory."""
    by_layout: dict[int, list[Item]] = {}
    for item in items:
        by_layout.setdefault(id(item.layout), []).append(item)
    for group in by_layout.values():
        layout = group[0].layout
        assert layout is not None
        sample = sample_of(layout, depth)
        step = max(1, BATCH // max(1, len(sample.offsets) * sample.page))
        for at in range(0, len(group), step):
            yield sample, group[at : at + step]
