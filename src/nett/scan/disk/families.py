"""Fine-tunes of one base, found by what they hold.

A fine-tune has the signs of its base: of a small change few weights change theirs, while those of two models that were
trained apart agree by chance. Sixteen signs of a tensor of so many bytes are a key; models that share a key are looked
at closer, so that n models cost a sort and not n^2 comparisons. What counts in the end is the entropy of the difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from nett.core.dtypes import Array
from nett.core.progress import report
from nett.scan.disk.evidence import Evidence
from nett.scan.disk.models import Unit
from nett.scan.disk.sample import Depth, Sample
from nett.scan.disk.steps import WORTH, Reader, deltas

AGREE = 13  # of the sixteen signs that are no part of the key
CANDIDATES, JUDGES = 4, 8  # bases that are tried on so many members
_ROUNDS = 4


def find_families(models: Sequence[Unit], depth: Depth) -> list[list[Unit]]:
    """Groups of two or more models near each other; sets ``base`` and ``delta`` of their members."""
    families = []
    groups = _grouped(models)
    report.begin("comparing", sum(map(len, groups)), "models")
    reader = Reader(depth)
    for group in groups:
        left = list(group)
        for _ in range(_ROUNDS):  # chance may have connected two families
            base = _best(left, reader)
            near = []
            for one, share, error in deltas([u for u in left if u is not base], base, reader):
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


def _best(group: Sequence[Unit], reader: Reader) -> Unit:
    """The model whose differences to the others save most; of two alike, the older one."""
    step = max(1, len(group) // CANDIDATES)
    judges = group[:: max(1, len(group) // JUDGES)][:JUDGES]

    def gain(candidate: Unit) -> float:
        others = [u for u in judges if u is not candidate]
        near = deltas(others, candidate, reader)
        return sum(max(0.0, u.own - share) for u, share, _ in near) / max(1, len(others))

    tried = list(group[::step][:CANDIDATES])
    gains = [gain(c) for c in tried]
    most = max(gains)
    return next(c for c, g in zip(tried, gains, strict=True) if g >= most * 0.995)
