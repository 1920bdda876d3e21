"""A checkpoint whose tables have other rows: each its own, the mean of rows of this and other checkpoints, or zeros.

What a vocabulary comes to when token ids change: the rows of the embeddings and the output head move, and tokens
that a model does not know are given what others know of them. Nothing is written for it; rows are looked up while
streaming, a range of elements at a time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.dtypes import Array, decode, encode

HELD = 1 << 27  # bytes of the tables that are kept while their rows are looked up out of order
BLOCK = 1 << 20  # elements read at a time for a table's mean
FEW = 64  # runs of neighbouring rows that are read one by one before a table is kept


@final
@dataclass(frozen=True)
class RowMap:
    """Where the rows of a table come from.

    ``own``: (rows,) the row of the checkpoint's own table, -1 for none. ``given``: (donors, rows) for those without:
    the mean of these rows of the donors' tables, -1 for none; zeros where no donor gives one. Rows from ``mean_from``
    on are the mean of all rows before it.
    """

    own: Array
    given: Array
    donors: tuple[Checkpoint, ...]
    mean_from: int

    @property
    def rows(self) -> int:
        return self.own.size


@final
class Tables:
    """Tables kept whole, shared by the checkpoints that look rows up in them. May be asked from several threads."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], Array] = {}
        self._lock = threading.Lock()

    def of(self, checkpoint: Checkpoint, name: str, current: set[str]) -> Array | None:
        """A table's elements, or None where there is no room beside those called as the ``current`` ones. They are
        raw where they lie so in a file, which is half of what their values would take, and values where not."""
        key, info = (id(checkpoint), name), checkpoint.tensors[name]
        plain = info.file is not None
        size = info.size * (info.dtype.bytes if plain else 8 if info.dtype.name == "F64" else 4)
        with self._lock:
            if key not in self._kept:
                if size + sum(t.nbytes for t in self._kept.values()) > HELD:
                    self._kept = {k: t for k, t in self._kept.items() if k[1] in current}
                if size + sum(t.nbytes for t in self._kept.values()) > HELD:
                    return None
                self._kept[key] = checkpoint.read(name) if plain else checkpoint.values(name)
            return self._kept[key]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


@final
class RowsCheckpoint(Checkpoint):
    """``source`` with the tables ``names`` mapped. ``names``: table -> its name in each donor, in their order.

    ``values`` are float32 (float64 where any table involved is F64) and means are not rounded; ``read`` rounds them to
    the table's type.
    """

    def __init__(
        self,
        source: Checkpoint,
        rows: RowMap,
        names: Mapping[str, Sequence[str]],
        *,
        config: Mapping[str, Any] | None = None,
        beside: Mapping[str, bytes] | None = None,
        tables: Tables | None = None,
    ) -> None:
        self.source, self.rows, self._names = source, rows, names
        self.path, self.files, self.format = source.path, source.files, source.format
        self.metadata, self.notes = source.metadata, source.notes
        self._config, self._beside = config, beside
        self.tensors = {n: self._info(t) if n in names else t for n, t in source.tensors.items()}
        self._tables = tables if tables is not None else Tables()
        self._means: dict[str, Array] = {}
        self._lock = threading.Lock()

    def _info(self, info: TensorInfo) -> TensorInfo:
        shape = (self.rows.rows, *info.shape[1:])
        made = replace(info, shape=shape, file=None, offset=-1)
        return replace(made, nbytes=made.size * info.dtype.bytes)

    # -- rows ---------------------------------------------------------------------------------------------------

    def values(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if name not in self._names:
            return self.source.values(name, start, stop)
        info = self.tensors[name]
        stop = info.size if stop is None else stop
        width = max(1, info.size // max(1, self.rows.rows))
        if start >= stop:
            return np.empty(0, self._kind(name))
        first, last = start // width, -(-stop // width)
        found = self._rows(name, first, last, width).reshape(-1)
        return found[start - first * width : stop - first * width]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if name not in self._names:
            return self.source.read(name, start, stop)
        return encode(self.values(name, start, stop), self.tensors[name].dtype)

    def _kind(self, name: str) -> Any:
        infos = [self.source.tensors[name]]
        infos += [d.tensors[n] for d, n in zip(self.rows.donors, self._names[name], strict=True)]
        return np.float64 if any(i.dtype.name == "F64" for i in infos) else np.float32

    def _rows(self, name: str, first: int, last: int, width: int) -> Array:
        """Rows ``first:last`` as (rows, width)."""
        own = self.rows.own[first:last]
        if own.size and own[0] >= 0 and np.array_equal(own, np.arange(own[0], own[0] + own.size)):
            found = self.source.values(name, int(own[0]) * width, int(own[0] + own.size) * width)
            return found.astype(self._kind(name), copy=False).reshape(-1, width)
        out = np.zeros((last - first, width), self._kind(name))
        mine = np.flatnonzero(own >= 0)
        out[mine] = self._gather(self.source, name, own[mine], width)
        lacking = np.flatnonzero(own < 0)
        self._give(name, out, lacking, self.rows.given[:, first + lacking], width)
        if last > self.rows.mean_from:
            out[max(0, self.rows.mean_from - first) :] = self._mean(name, width)
        return out

    def _give(self, name: str, out: Array, places: Array, given: Array, width: int) -> None:
        """Fill the rows ``places`` with the means of what the donors give."""
        counts = np.zeros(places.size, np.int64)
        for donor, other, rows in zip(self.rows.donors, self._names[name], given, strict=True):
            has = np.flatnonzero(rows >= 0)
            if not has.size:
                continue
            values = self._gather(donor, other, rows[has], width)
            # The first is put there as it is: added to zero, -0.0 would come out as 0.0.
            new = counts[has] == 0
            out[places[has[new]]] = values[new]
            out[places[has[~new]]] += values[~new]
            counts[has] += 1
        many = counts > 1
        out[places[many]] /= counts[many, None].astype(out.dtype)

    def _together(self, name: str) -> set[str]:
        """The names of the tables that are looked up with this one."""
        return {name}.union(*(names for own, names in self._names.items() if name == own or name in names))

    def _gather(self, checkpoint: Checkpoint, name: str, rows: Array, width: int) -> Array:
        """Some rows of a table, in the order asked for."""
        if not rows.size:
            return np.empty((0, width), np.float32)
        order = np.argsort(rows, kind="stable")
        wanted, back = np.unique(rows[order], return_inverse=True)
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        starts, stops = np.r_[0, breaks], np.r_[breaks, wanted.size]
        table = self._tables.of(checkpoint, name, self._together(name)) if starts.size > FEW else None
        if table is not None:
            found = np.asarray(table.reshape(-1, width)[rows])
            info = checkpoint.tensors[name]
            return decode(found.reshape(-1), info.dtype).reshape(-1, width) if info.file is not None else found
        parts = [
            checkpoint.values(name, int(wanted[a]) * width, (int(wanted[b - 1]) + 1) * width).reshape(-1, width)
            for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        read = parts[0] if len(parts) == 1 else np.concatenate(parts)
        out = np.empty((rows.size, width), read.dtype)
        out[order] = read[back]
        return out

    def _mean(self, name: str, width: int) -> Array:
        """The mean of all rows before ``mean_from``, added up in float64."""
        with self._lock:
            if name in self._means:
                return self._means[name]
        count, step = self.rows.mean_from, max(1, BLOCK // width)
        total = np.zeros(width, np.float64)
        for first in range(0, count, step):
            total += self._rows(name, first, min(count, first + step), width).sum(0, dtype=np.float64)
        mean = total / max(1, count)
        with self._lock:
            return self._means.setdefault(name, mean)

    # -- what is the source's -----------------------------------------------------------------------------------

    @property
    def mapped(self) -> tuple[str, ...]:
        """The tables whose rows are others than the source's."""
        return tuple(self._names)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def reference(self) -> str:
        return self.source.reference

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def nbytes(self) -> int:
        """What is read, not what comes of it."""
        return self.source.nbytes

    def config(self) -> dict[str, Any] | None:
        return copy.deepcopy(dict(self._config)) if self._config is not None else self.source.config()

    def beside(self) -> dict[str, bytes] | None:
        return dict(self._beside) if self._beside is not None else self.source.beside()

    def close(self) -> None:
        """Lets go of the tables; the checkpoints are closed by whoever opened them."""
        self._tables.clear()
