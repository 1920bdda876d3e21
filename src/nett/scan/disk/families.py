"""Fine-tunes of one base, found by what they hold.

A fine-tune has the signs of its base: of a small change few weights change theirs, while those of two models that were
trained apart agree by chance. Sixteen signs of a tensor of so many bytes are a key; models that share a key are looked
at closer, so that n models cost a sort and not n^2 comparisons. What counts in the end is the entropy of the difference.
"""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.progress import report
from nett.scan.disk.entropy import page_shares
from nett.scan.disk.evidence import Evidence
from nett.scan.disk.items import Item
from nett.scan.disk.sample import CODED, Depth, Sample, read_pages, sample_of

AGREE = 13  # of the sixteen signs that are no part of the key
CANDIDATES, JUDGES = 4, 8  # bases that are tried on so many members
ALIKE, WORTH = 0.9, 0.95  # as the store: share of the bytes that both have; what a difference must be smaller than
_ROUNDS = 4
_PAGES = 512  # of models that are kept in memory


@final
@dataclass(eq=False)
class Unit:
    """A model: its files that are read alike. ``base``: the model that it is a small step from; ``delta``: coded bytes
    a byte of a tensor that moved, ``error`` its standard error."""

    path: str
    files: list[Evidence]
    base: Unit | None = None
    delta: float = 1.0
    error: float = 0.0
    memo: dict[str, Any] = field(default_factory=dict)
    exact: dict[int, Array] = field(default_factory=dict)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Equal for models of the same files."""
        return tuple(id(e.layout) for e in self.files)

    @cached_property
    def own(self) -> float:
        """Coded bytes a byte of the model by itself."""
        nbytes = sum(float(e.weights.sum()) for e in self.files)
        return sum(float((e.weights * e.own).sum()) for e in self.files) / nbytes if nbytes else 1.0

    def delta_of(self, number: int) -> Array | None:
        """Coded bytes a byte of each row of file ``number`` as a difference to the base; None without a base."""
        if self.base is None:
            return None
        if number in self.exact:
            return self.exact[number]
        e = self.files[number]
        if self.shape == self.base.shape:
            return np.where(e.hashes == self.base.files[number].hashes, 0.0, self.delta)
        found = e.own.copy()
        for row in range(len(found)):
            if (there := self.there(number, row)) is not None:
                other, place = there
                found[row] = 0.0 if place >= 0 and other.hashes[place] == e.hashes[row] else self.delta
        return found

    def there(self, number: int, row: int) -> tuple[Evidence, int] | None:
        """(file of the base, row in it) that corresponds to a row of file ``number``; row -1 if it was not looked at;
        None where the base has no such tensor."""
        assert self.base is not None
        e = self.files[number]
        t = int(e.tensors[row])
        place = self.base.names().get((_called(e, e.layout.names[t]), int(e.layout.nbytes[t])))
        if place is None:
            return None
        other = self.base.files[place[0]]
        at = np.flatnonzero(other.tensors == place[1])
        return other, int(at[0]) if len(at) else -1

    def names(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(name, bytes) -> (file, tensor); names only tell which tensors of two models to compare."""
        if "names" not in self.memo:
            self.memo["names"] = {
                (_called(e, name), int(size)): (number, t)
                for number, e in enumerate(self.files)
                for t, (name, size) in enumerate(zip(e.layout.names, e.layout.nbytes, strict=True))
            }
        found: dict[tuple[str, int], tuple[int, int]] = self.memo["names"]
        return found


def _called(e: Evidence, name: str) -> str:
    """The tensor's name in its model: records of zipped files have numbers, which each file begins anew."""
    return f"{os.path.basename(e.item.path)}/{name}" if e.layout.format == "zip" else name


def units(known: Sequence[Evidence]) -> list[Unit]:
    """The models that the files are."""
    found: dict[tuple[str, str], list[Evidence]] = defaultdict(list)
    for one in known:
        if one.layout.format != "opaque":
            found[one.item.unit, one.layout.format].append(one)
    made = [Unit(path, sorted(files, key=lambda e: e.item.path)) for (path, _), files in found.items()]
    return sorted(made, key=lambda u: (min(e.item.stat.st_mtime_ns for e in u.files), u.path))


def find_families(models: Sequence[Unit], depth: Depth) -> list[list[Unit]]:
    """Groups of two or more models near each other; sets ``base`` and ``delta`` of their members."""
    families = []
    groups = _grouped(models)
    report.begin("comparing", sum(map(len, groups)), "models")
    reader = _Reader(depth)
    for group in groups:
        left = list(group)
        for _ in range(_ROUNDS):  # chance may have connected two families
            base = _best(left, reader)
            near = []
            for one, share, error in _deltas([u for u in left if u is not base], base, reader):
                if share < WORTH * one.own:
                    one.base, one.delta, one.error = base, share, error
                    near.append(one)
            if near:
                families.append([base, *near])
            left = [u for u in left if u is not base and u.base is None]
            if len(left) < 2:
                break
        report.step(len(group))
    report.end()
    return families


def _grouped(models: Sequence[Unit]) -> list[list[Unit]]:
    """Models connected by signs that agree."""
    keys, words, whose = [], [], []
    for number, unit in enumerate(models):
        for e in unit.files:
            sample = e.item.layout and _anchors(e)
            if sample is None or not len(sample):
                continue
            keys.append(sample)
            words.append(e.signs)
            whose.append(np.full(len(sample), number))
    if not keys:
        return []
    sizes, signs, owner = np.concatenate(keys), np.concatenate(words), np.concatenate(whose)
    parent = list(range(len(models)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for shift in (0, 16):
        half, rest = signs >> np.uint32(shift) & np.uint32(0xFFFF), signs >> np.uint32(16 - shift) & np.uint32(0xFFFF)
        mixed = _ones(half)
        use = np.flatnonzero((mixed >= 4) & (mixed <= 12))  # of values with one sign, agreement says nothing
        key = sizes[use].astype(np.uint64) << np.uint64(16) | half[use].astype(np.uint64)
        order = np.lexsort((owner[use], key))
        key, at = key[order], use[order]
        new = np.concatenate(([True], key[1:] != key[:-1])) if len(key) else np.empty(0, bool)
        leader = at[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(key) else at
        close = 16 - _ones(rest[at] ^ rest[leader]) >= AGREE
        for a, b in {(int(owner[i]), int(owner[j])) for i, j in zip(at[close], leader[close], strict=True)}:
            if a != b:
                parent[root(a)] = root(b)
    found: dict[int, list[Unit]] = defaultdict(list)
    for number, unit in enumerate(models):
        found[root(number)].append(unit)
    return [group for group in found.values() if len(group) > 1]


def _anchors(e: Evidence) -> Array:
    """Bytes of the tensors whose signs were taken."""
    if "anchors" not in e.layout.memo:
        sample = next(s for s in e.layout.memo.values() if isinstance(s, Sample))
        owner = np.searchsorted(sample.first, sample.anchors, "right") - 1
        e.layout.memo["anchors"] = e.layout.nbytes[sample.tensors[owner]]
    found: Array = e.layout.memo["anchors"]
    return found


def _ones(words: Array) -> Array:
    bits = np.unpackbits(words.astype(np.uint16).view(np.uint8).reshape(-1, 2), axis=1)
    return np.asarray(bits.sum(1, dtype=np.int64))


class _Page(NamedTuple):
    """Of file ``file``, at ``offset`` of its data, in a tensor of elements of ``width`` bytes."""

    file: int
    offset: int
    tensor: int
    width: int


@final
class _Reader:
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
            there = theirs.get((_called(e, e.layout.names[page.tensor]), int(e.layout.nbytes[page.tensor])))
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


def _deltas(members: Sequence[Unit], base: Unit, reader: _Reader) -> list[tuple[Unit, float, float]]:
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


def _best(group: Sequence[Unit], reader: _Reader) -> Unit:
    """The model whose differences to the others save most; of two alike, the older one."""
    step = max(1, len(group) // CANDIDATES)
    judges = group[:: max(1, len(group) // JUDGES)][:JUDGES]

    def gain(candidate: Unit) -> float:
        others = [u for u in judges if u is not candidate]
        near = _deltas(others, candidate, reader)
        return sum(max(0.0, u.own - share) for u, share, _ in near) / max(1, len(others))

    tried = list(group[::step][:CANDIDATES])
    gains = [gain(c) for c in tried]
    most = max(gains)
    return next(c for c, g in zip(tried, gains, strict=True) if g >= most * 0.995)
