"""The network without some of its units: every tensor they lie in is cut, and the layers are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.structure.families import tell
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.groups import Group


def removed(module: Any, groups: Sequence[Group], kept: Mapping[str, Array]) -> Any:
    """A copy of ``module`` that has only some of its units; what remains keeps its order, its bits and its types.

    Args:
        groups: of the module's :class:`Structure`.
        kept: group -> numbers of the units that stay, at least one; groups without an entry stay whole.

    Raises Refused for a layer that cannot have such a width, UsageError for a unit that is not there.
    """
    import torch

    stored = module.state_dict()
    stay: dict[tuple[str, int], Array] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for group in groups:
        if group.name not in kept:
            continue
        units = np.unique(np.asarray(kept[group.name], np.intp))
        if not len(units) or units[0] < 0 or units[-1] >= group.size:
            raise UsageError(
                f"group {group.name!r} keeps {len(units)} units: 1 to {group.size}, numbered from 0, can be kept"
            )
        gone = np.setdiff1d(np.arange(group.size), units)
        if not len(gone):
            continue
        sizes[group.name] = (group.size, len(units))
        for place in group.places:
            if place.tensor in stored:
                size = stored[place.tensor].shape[place.axis]
                mask = stay.setdefault((place.tensor, place.axis), np.ones(size, bool))
                mask[place.index[gone].reshape(-1)] = False
    cut: dict[str, Any] = {}
    for (name, axis), mask in stay.items():
        index = torch.from_numpy(np.flatnonzero(mask)).to(stored[name].device)
        cut[name] = cut.get(name, stored[name]).index_select(axis, index)
    made = fitted(module, cut)
    tell(made, [g for g in groups if g.name in sizes], sizes)
    return made
