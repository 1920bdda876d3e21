"""What is known of each file's content: from sampled pages here, from every byte in :mod:`nett.scan.disk.exact`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.progress import report
from nett.scan.disk.entropy import page_shares
from nett.scan.disk.grids import TRIED, of_pages
from nett.scan.disk.items import Item
from nett.scan.disk.layout import Layout
from nett.scan.disk.sample import BATCH, Depth, Sample, batches, read_pages

SIGNS = 32  # elements of an anchor whose signs are compared


@final
@dataclass(eq=False, slots=True)
class Evidence:
    """Of one file. Row k is about tensor ``tensors[k]`` of its layout, and speaks for ``weights[k]`` bytes.

    ``hashes``: equal where the tensors are, as far as was looked; ``telling``: False where equality says little (a page
    of one byte repeated). ``own``: coded bytes a byte, ``error`` its standard error; ``grid``: bytes a byte that
    packing takes off what lies on a quantisation grid. ``narrow``: whether every F32 value that was seen is a bfloat16.
    ``other``: as ``hashes``, with the rows of rotary tensors in the order of Hugging Face; row -> hash.
    """

    item: Item
    whole: tuple[object, ...]
    tensors: Array
    weights: Array
    hashes: Array
    telling: Array
    own: Array
    error: Array
    grid: Array
    narrow: Array
    signs: Array
    other: dict[int, int] = field(default_factory=dict)
    sampled: int = 0  # tensors that were looked at

    @property
    def layout(self) -> Layout:
        assert self.item.layout is not None
        return self.item.layout


def gather(items: Sequence[Item], depth: Depth) -> list[Evidence]:
    """Look into every file; those that cannot be read are left out."""
    found: list[Evidence] = []
    step = -(-len(items) // TRIED) or 1
    memory = np.empty(BATCH, np.uint8)
    report.begin("sampling", len(items), "files")
    for sample, some in batches(items, depth):
        read, pages = read_pages(some, sample, memory)
        found += _of_batch(read, sample, pages, step)
        report.step(len(some))
    report.end()
    return found


def _of_batch(items: list[Item], sample: Sample, pages: Array, step: int) -> list[Evidence]:
    from xxhash import xxh3_64_intdigest

    if not items:
        return []
    layout = items[0].layout
    assert layout is not None
    sizes = layout.nbytes[sample.tensors].tolist()
    first = sample.first.tolist()
    hashes = np.empty((len(items), len(sizes)), np.uint64)
    for row, own in enumerate(pages):
        rows = memoryview(own.reshape(-1))
        page = sample.page
        for k, size in enumerate(sizes):
            hashes[row, k] = xxh3_64_intdigest(rows[first[k] * page : first[k + 1] * page], size)
    telling = _telling(pages, sample) if sizes else np.ones((len(items), 0), bool)
    own, error, grid = _coded(layout, sample, pages, len(items), step)
    narrow = _narrow(layout, sample, pages)
    signs = _signs(layout, sample, pages)
    return [
        Evidence(
            item,
            (item.size, item.head, hashes[i].tobytes()),
            sample.tensors,
            sample.weights,
            hashes[i],
            telling[i],
            own[i],
            error[i],
            grid[i],
            narrow[i],
            signs[i],
            _rotated(item, layout, sample),
            len(sizes),
        )
        for i, item in enumerate(items)
    ]


def _telling(pages: Array, sample: Sample) -> Array:
    """Whether any page of a tensor holds more than one byte repeated."""
    few = pages[:, :, :: max(1, sample.page // 64)]
    varied = (few != few[:, :, :1]).any(-1)
    for i, k in zip(*np.nonzero(~varied), strict=True):
        varied[i, k] = bool((pages[i, k] != pages[i, k, 0]).any())
    return np.logical_or.reduceat(varied, sample.first[:-1], axis=1)


def _coded(layout: Layout, sample: Sample, pages: Array, count: int, step: int) -> tuple[Array, Array, Array]:
    """Coded bytes a byte of each sampled tensor, the standard error, and what packing on a grid takes off: the means of
    the pages of its element size."""
    own, error, grid = np.ones((count, len(sample.tensors))), *np.zeros((2, count, len(sample.tensors)))
    if layout.format == "opaque":
        return own, error, grid
    packed = of_pages(layout, sample, pages, step)
    owner = np.searchsorted(sample.first, sample.coded, "right") - 1
    widths = layout.widths[sample.tensors]
    for width in np.unique(widths[owner]):
        here = widths[owner] == width
        mine = sample.coded[here]
        some = np.ascontiguousarray(pages[:, mine]).reshape(-1, sample.page)
        shares = np.minimum(page_shares(some, int(width)).reshape(count, -1), packed[:, here])
        grid[:, widths == width] = 1.0 - packed[:, here].mean(1, keepdims=True)
        own[:, widths == width] = shares.mean(1, keepdims=True)
        error[:, widths == width] = standard_error(shares)[:, None]
    return own, error, grid


def standard_error(shares: Array) -> Array:
    """Of the mean over the last axis; of a single page nothing is known but that it lies between 0 and 1."""
    n = shares.shape[-1]
    found: Array = shares.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(shares.shape[:-1], 0.25)
    return found


def _narrow(layout: Layout, sample: Sample, pages: Array) -> Array:
    """Whether the low halves of all F32 elements seen are zero; False for other tensors."""
    found = np.zeros((len(pages), len(sample.tensors)), bool)
    if layout.format == "opaque":
        return found
    for k in np.flatnonzero(layout.floats[sample.tensors]):
        low = pages[:, sample.first[k] : sample.first[k + 1]].view(np.uint16)[:, :, ::2]
        found[:, k] = ~low.any((1, 2))
    return found


def _signs(layout: Layout, sample: Sample, pages: Array) -> Array:
    """The sign bits of ``SIGNS`` elements of each anchor's first page, packed: (files, anchors) of uint32."""
    words = np.zeros((len(pages), len(sample.anchors)), np.uint32)
    owner = np.searchsorted(sample.first, sample.anchors, "right") - 1
    for k, (page, tensor) in enumerate(zip(sample.anchors, owner, strict=True)):
        width = int(layout.widths[sample.tensors[tensor]]) or 4  # the last byte of four is one of two as well
        count = sample.page // width
        last = np.arange(SIGNS) * (count // SIGNS) * width + width - 1
        bits = pages[:, page, last] >> 7
        words[:, k] = (bits.astype(np.uint32) << np.arange(SIGNS, dtype=np.uint32)).sum(1, dtype=np.uint32)
    return words


def _rotated(item: Item, layout: Layout, sample: Sample) -> dict[int, int]:
    """Row -> the hash that a rotary tensor would have, were its rows not permuted as llama.cpp does."""
    rows = [k for k, t in enumerate(sample.tensors.tolist()) if t in layout.rotary]
    if not rows:
        return {}
    import os

    from xxhash import xxh3_64_intdigest

    found = {}
    try:
        fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        for k in rows:
            tensor = int(sample.tensors[k])
            begin, size = int(layout.offsets[tensor]), int(layout.nbytes[tensor])
            text = b""
            for offset in sample.offsets[sample.first[k] : sample.first[k + 1]].tolist():
                text += unpermuted(fd, item.start + begin, size, layout.rotary[tensor], offset - begin, sample.page)
            found[k] = xxh3_64_intdigest(text, size)
    except OSError:
        return {}
    finally:
        os.close(fd)
    return found


def unpermuted(fd: int, begin: int, size: int, rotary: tuple[int, int], at: int, count: int) -> bytes:
    """Bytes ``at:at + count`` of a tensor as Hugging Face orders its rows: within each head llama.cpp lets the rows of
    the two halves alternate."""
    import os

    heads, row = rotary
    within = size // row // heads  # rows of a head
    out = b""
    for number in range(at // row, -(-(at + count) // row)):
        head, here = divmod(number, within)
        half, place = divmod(here, within // 2)
        out += os.pread(fd, row, begin + (head * within + 2 * place + half) * row)
    skip = at - at // row * row
    return out[skip : skip + count]
