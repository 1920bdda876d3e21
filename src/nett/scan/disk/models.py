"""Models as a scan of a disk takes them apart: their files, and what each tensor of them takes beside a base."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.scan.disk.evidence import Evidence


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
        place = self.base.names().get((called(e, e.layout.names[t]), int(e.layout.nbytes[t])))
        if place is None:
            return None
        other = self.base.files[place[0]]
        at = np.flatnonzero(other.tensors == place[1])
        return other, int(at[0]) if len(at) else -1

    def names(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(name, bytes) -> (file, tensor); names only tell which tensors of two models to compare."""
        if "names" not in self.memo:
            self.memo["names"] = {
                (called(e, name), int(size)): (number, t)
                for number, e in enumerate(self.files)
                for t, (name, size) in enumerate(zip(e.layout.names, e.layout.nbytes, strict=True))
            }
        found: dict[tuple[str, int], tuple[int, int]] = self.memo["names"]
        return found


def called(e: Evidence, name: str) -> str:
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
