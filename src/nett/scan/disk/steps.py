"""How small the step from one model to another is: entropies of the differences of a few pages."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from nett.core.dtypes import Array
from nett.scan.disk.entropy import page_shares
from nett.scan.disk.items import Item
from nett.scan.disk.models import Unit, called
from nett.scan.disk.sample import CODED, Depth, Sample, read_pages, sample_of

ALIKE, WORTH = 0.9, 0.95  # as the store: share of the bytes that both have; what a difference must be smaller than
_PAGES = 512  # of models that are kept in memory


class _Page(NamedTuple):
    """Of file ``file``, at ``offset`` of its data, in a tensor of elements of ``width`` bytes."""

    file: int
    offset: int
    tensor: int
    width: int


@final
class Reader:
    """The pages of a model from which differences are judged, the same places for models of one shape."""

    def __init__(self, depth: Depth) -> None:
        self._depth = depth
        self._kept: OrderedDict[Any, Array | None] = OrderedDict()
        self._places: dict[tuple[int, ...], list[_Page]] = {}

    def pages(self, unit: Unit) -> list[_Page]:
        """The same for models of one shape."""
        if unit.shape not in self._places:
            found = []
            for number, e in enumerate(unit.files):
                sample = sample_of(e.layout, self._depth)
                for page in sample.coded.tolist():
                    tensor = int(sample.tensors[np.searchsorted(sample.first, page, "right") - 1])
                    found.append(_Page(number, int(sample.offsets[page]), tensor, int(e.layout.widths[tensor])))
            self._places[unit.shape] = found[:: max(1, -(-len(found) // (2 * CODED)))]
        return self._places[unit.shape]

    def own(self, unit: Unit) -> Array | None:
        """(pages, bytes); None where a file cannot be read any more."""
        return self._read(unit, tuple((p.file, p.offset) for p in self.pages(unit)))

    def of_base(self, unit: Unit, base: Unit) -> Array | None:
        """The same places in the same tensors of ``base``; rows of pages that it lacks are those of the unit."""
        pages = self.pages(unit)
        if base.shape == unit.shape:
            return self.own(base)
        places: list[tuple[int, int] | None] = []
        theirs = base.names()
        for page in pages:
            e = unit.files[page.file]
            there = theirs.get((called(e, e.layout.names[page.tensor]), int(e.layout.nbytes[page.tensor])))
            if there is None:
                places.append(None)
                continue
            inside = page.offset - int(e.layout.offsets[page.tensor])
            places.append((there[0], int(base.files[there[0]].layout.offsets[there[1]]) + inside))
        read, out = self._read(base, tuple(p for p in places if p is not None)), self.own(unit)
        if read is None or out is None:
            return None
        out = out.copy()
        out[[p is not None for p in places]] = read
        return out

    def _read(self, unit: Unit, places: tuple[tuple[int, int], ...]) -> Array | None:
        key = (id(unit), places)
        if key not in self._kept:
            rows: list[Array] = []
            for number in dict.fromkeys(n for n, _ in places):
                here = np.array([o for n, o in places if n == number], np.int64)
                rows += _pages_at(unit.files[number].item, here)
            self._kept[key] = np.stack(rows) if len(rows) == len(places) and rows else None
            while len(self._kept) > _PAGES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _pages_at(item: Item, offsets: Array) -> list[Array]:
    none = np.empty(0, np.int64)
    read, pages = read_pages([item], Sample(none, none, none, offsets, none, none, 4096))
    return list(pages[0]) if read else []


def _shared(unit: Unit, base: Unit) -> bool:
    """Whether the two have enough tensors in common, by name and size."""
    if unit.shape == base.shape:
        return True
    theirs = base.names()
    sizes = [(key, key[1]) for key in unit.names()]
    return sum(n for key, n in sizes if key in theirs) >= ALIKE * sum(n for _, n in sizes)


def deltas(members: Sequence[Unit], base: Unit, reader: Reader) -> list[tuple[Unit, float, float]]:
    """(member, coded bytes a byte of its pages that differ from the base's, standard error), without those too unlike."""
    batch: dict[tuple[int, ...], list[tuple[Unit, Array, Array]]] = defaultdict(list)
    found: list[tuple[Unit, float, float]] = []
    for one in members:
        if not _shared(one, base):
            continue
        mine, ground = reader.own(one), reader.of_base(one, base)
        if mine is None or ground is None:
            continue
        kind = tuple(p.width for p in reader.pages(one))
        batch[kind].append((one, mine, ground))
        if len(batch[kind]) >= 64:
            found += _judged(kind, batch.pop(kind))
    for kind, some in batch.items():
        found += _judged(kind, some)
    return found


def _judged(kind: tuple[int, ...], some: Sequence[tuple[Unit, Array, Array]]) -> list[tuple[Unit, float, float]]:
    mine, ground = np.stack([m for _, m, _ in some]), np.stack([g for _, _, g in some])
    shares = np.ones(mine.shape[:2])
    for width in set(kind):
        at = np.flatnonzero(np.array(kind) == width)
        pages, base = (np.ascontiguousarray(a[:, at]).reshape(-1, a.shape[-1]) for a in (mine, ground))
        shares[:, at] = page_shares(pages, width, base).reshape(len(some), -1)
    moved = (mine != ground).any(-1)
    count = moved.sum(1)
    mean = np.where(count > 0, (shares * moved).sum(1) / np.maximum(count, 1), shares.mean(1))
    spread = np.where(moved, (shares - mean[:, None]) ** 2, 0.0).sum(1) / np.maximum(count - 1, 1)
    error = np.where(count > 1, np.sqrt(spread / np.maximum(count, 1)), 0.25)
    return [(one, float(m), float(e)) for (one, _, _), m, e in zip(some, mean, error, strict=True)]
