"""A checkpoint of which only some experts are seen: read as the smaller model that it is then.

Nothing is copied: experts get new numbers, the router's rows are read where they lie, and what is not chosen is never
touched. ``reads`` and ``bytes_read`` count what was read of the files.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from nett.core.checkpoint import Checkpoint, TensorInfo
from nett.core.dtypes import Array
from nett.core.expert_map import MARK
from nett.experts.layouts import FileLayer
from nett.experts.view import count_key, experts_view


@final
class Chosen(Checkpoint):
    """``kept``: for each mixture of ``of`` the experts that are seen, in their new order. The config counts them; where
    layers differ in number, it says so for ``nett.load`` alone (:mod:`nett.core.expert_map`).

    Closing it leaves ``of`` open, unless that is ``owned``. ``reference``: what opens the same again, where it is not the
    whole model's. Raises what :func:`nett.experts.view.experts_view` raises.
    """

    def __init__(
        self,
        of: Checkpoint,
        kept: Sequence[Sequence[int]],
        layers: Sequence[FileLayer] | None = None,
        *,
        owned: bool = False,
        reference: str | None = None,
    ) -> None:
        layers = experts_view(of) if layers is None else layers
        self._of, self.kept = of, [list(map(int, k)) for k in kept]
        self.layers, self._owned, self._reference = layers, owned, reference or of.reference
        self.path, self.files, self.format = of.path, of.files, of.format
        self.metadata, self.notes = of.metadata, of.notes
        self.reads: Counter[str] = Counter()  # bytes by tensor
        self._from: dict[str, tuple[str, list[int] | None]] = {}  # name -> tensor of the file, its rows where not all
        gone = {n for layer in layers for n in layer.place.experts}
        rows: dict[str, list[int]] = {}
        for layer, chosen in zip(layers, self.kept, strict=True):
            place = layer.place
            rows |= dict.fromkeys([place.router, *place.beside], chosen)
            named = place.named(len(chosen))
            for role, names in place.roles.items():
                if place.fused:
                    rows[names[0]] = chosen
                    gone.discard(names[0])
                else:
                    self._from |= {named[role][e]: (names[old], None) for e, old in enumerate(chosen)}
        for name in of.tensors:
            if name not in gone:
                whole = name not in rows or rows[name] == list(range(of.tensors[name].shape[0]))
                self._from[name] = (name, None if whole else rows[name])
        order = {name: i for i, name in enumerate(of.tensors)}
        self._from = dict(sorted(self._from.items(), key=lambda item: order[item[1][0]]))
        self.tensors: Mapping[str, TensorInfo] = {n: self._info(n, *place) for n, place in self._from.items()}

    def _info(self, name: str, source: str, rows: list[int] | None) -> TensorInfo:
        info = self._of.tensors[source]
        if rows is None:
            return TensorInfo(name, info.dtype, info.shape, info.stored, info.nbytes, info.file, info.offset)
        shape = (len(rows), *info.shape[1:])
        size = info.nbytes // max(1, info.shape[0]) * len(rows)
        return TensorInfo(name, info.dtype, shape, info.stored, size)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        source, rows = self._from[name]
        info = self.tensors[name]
        stop = info.size if stop is None else stop
        if rows is None:
            found = self._of.read(source, start, stop)
        else:
            each = info.size // max(1, len(rows))
            found = np.empty(max(0, stop - start), info.dtype.raw)
            at = start
            while at < stop:
                row, inside = divmod(at, each)
                end = min(stop, (row + 1) * each)
                first = rows[row] * each + inside
                found[at - start : end - start] = self._of.read(source, first, first + end - at)
                at = end
        self.reads[name] += found.nbytes
        return found

    @property
    def bytes_read(self) -> int:
        """Of the files, by all readings so far."""
        return sum(self.reads.values())

    def close(self) -> None:
        """The checkpoint behind it is closed by who opened it."""
        if self._owned:
            self._of.close()

    @property
    def reference(self) -> str:
        return self._reference

    def beside(self) -> dict[str, bytes] | None:
        return self._of.beside()

    def config(self) -> dict[str, Any] | None:
        config = self._of.config()
        return None if config is None else counted(config, [len(k) for k in self.kept])


def counted(
    config: Mapping[str, Any], counts: Sequence[int], maps: Sequence[Sequence[int] | None] = ()
) -> dict[str, Any]:
    """A config that says how many experts each mixture stores: by its own entry where all have equally many and no
    router has more rows than that, otherwise by the mark of :mod:`nett.core.expert_map`."""
    made = copy.deepcopy(dict(config))
    made.pop(MARK, None)
    inner = made.get("text_config")
    text = inner if isinstance(inner, dict) else made
    maps = list(maps) or [None] * len(counts)
    if len(set(counts)) == 1 and not any(m is not None for m in maps):
        key = count_key(text)
        if key is not None:
            text[key] = int(counts[0])
        return made
    made[MARK] = [
        {"experts": int(n)} | ({} if m is None else {"map": [int(e) for e in m]})
        for n, m in zip(counts, maps, strict=True)
    ]
    return made
