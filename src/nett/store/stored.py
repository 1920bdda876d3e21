"""The units that lie in a store, as the planner sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nett.core.errors import NettError
from nett.store.library import Library
from nett.store.planning import Known, largest, sampled
from nett.store.records import Model
from nett.store.units import Unit, units_of

_ASKED = 8  # tensors of a unit whose depth is looked at


def stored_units(library: Library, *, hops: bool) -> Iterator[Known]:
    """Every unit of every model. ``hops``: also how many differences each rests on, which reads headers."""
    for model in library.models():
        for unit in units_of(model.name, model.files):
            yield known(library, model, unit, _hops(library, unit) if hops else 0)


def known(library: Library, model: Model, unit: Unit, hops: int = 0) -> Known:
    def sample(part: Any) -> Any:
        return sampled(lambda at, count: library.objects.read(part.object, at, count), part.nbytes)

    return Known(unit.name, unit.tensors, model.nbytes, sample, hops)


def _hops(library: Library, unit: Unit) -> int:
    most = 0
    for name in largest(unit.tensors)[:_ASKED]:
        try:
            most = max(most, len(library.objects.chain(unit.tensors[name].object)) - 1)
        except NettError:  # damaged: nett store check says so
            continue
    return most
