"""Which files and tensors are equal, by what is known of them; one of each is kept, and which one is decided so that
nothing ever rests on what rests on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.scan.disk.evidence import Evidence


@final
@dataclass(frozen=True)
class Twin:
    """Row ``row`` of a file equals row ``owner_row`` of ``owner``. ``permuted``: but for the order of its rows."""

    row: int
    owner: Evidence
    owner_row: int


def equal_files(known: Sequence[Evidence]) -> dict[Evidence, Evidence]:
    """File -> the one that is kept in its stead. Kept: what cannot be replaced, then what has most names, then the
    oldest, as ``nett store link`` does."""
    groups: dict[object, list[Evidence]] = defaultdict(list)
    for one in known:
        if one.item.size:
            groups[one.whole].append(one)
    found: dict[Evidence, Evidence] = {}
    for group in groups.values():
        if len(group) > 1:
            group.sort(key=lambda e: (not e.item.pinned, not e.item.held, -len(e.item.names), e.item.stat.st_mtime_ns,
                                      e.item.path))  # fmt: skip
            found |= dict.fromkeys(group[1:], group[0])
    return found


def twins(order: Sequence[Evidence]) -> dict[Evidence, list[Twin]]:
    """Tensors that an earlier file, or an earlier place of the same file, has as well. ``order``: a file may rest on
    those before it."""
    keys, files, rows = _columns(order)
    by_key = np.lexsort((rows, files, keys))
    keys, files, rows = keys[by_key], files[by_key], rows[by_key]
    new = np.concatenate(([True], keys[1:] != keys[:-1])) if len(keys) else np.empty(0, bool)
    owner = np.flatnonzero(new)[np.cumsum(new) - 1] if len(keys) else new
    found: dict[Evidence, list[Twin]] = defaultdict(list)
    for at in np.flatnonzero(~new).tolist():
        found[order[files[at]]].append(Twin(int(rows[at]), order[files[owner[at]]], int(rows[owner[at]])))
    return found


def permuted(order: Sequence[Evidence]) -> dict[Evidence, list[Twin]]:
    """Rotary tensors of GGUF files that another file has in the order of Hugging Face."""
    wanted: dict[int, list[tuple[Evidence, int]]] = defaultdict(list)
    for one in order:
        for row, value in one.other.items():
            if value != int(one.hashes[row]) and one.telling[row]:
                wanted[value].append((one, row))
    found: dict[Evidence, list[Twin]] = defaultdict(list)
    if not wanted:
        return found
    keys, files, rows = _columns(order)
    for at in np.flatnonzero(np.isin(keys, np.fromiter(wanted, np.uint64, len(wanted)))).tolist():
        for one, row in wanted.pop(int(keys[at]), ()):
            if one is not order[files[at]]:
                found[one].append(Twin(row, order[files[at]], int(rows[at])))
    return found


def _columns(order: Sequence[Evidence]) -> tuple[Array, Array, Array]:
    """(hash, file, row) of every tensor whose equality says something."""
    known = [e for e in order if e.layout.format != "opaque"]
    number = {e: i for i, e in enumerate(order)}
    if not known:
        none = np.empty(0, np.int64)
        return np.empty(0, np.uint64), none, none
    rows = [np.flatnonzero(e.telling) for e in known]
    keys = np.concatenate([e.hashes[r] for e, r in zip(known, rows, strict=True)])
    files = np.repeat([number[e] for e in known], [len(r) for r in rows])
    return keys, files, np.concatenate(rows)
