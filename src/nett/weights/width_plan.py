"""How many heads and channels go from each block, so that a share of their weights goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.weights.structures import Structure


def equal_counts(structures: Sequence[Structure], ratio: float, multiple: int = 1) -> dict[str, int]:
    """Units that go from each structure, the same in each block.

    Heads are few, so their number is the nearest; channels make up for it, so that ``ratio`` of all weights of units
    goes. The channels that stay are rounded up to a multiple of ``multiple``. Refused where nothing would be left of a kind.
    """
    first = {s.kind: s for s in structures}
    for structure in structures:
        if structure.size != first[structure.kind].size:
            raise Refused(
                f"{structure.name} are {structure.size}, those of the first block {first[structure.kind].size}"
            )
    whole = sum(s.size * s.weights for s in first.values())
    left, counts = ratio * whole, {}
    for kind in ("heads", "mlp"):
        if kind not in first:
            continue
        one = first[kind]
        wanted = ratio * one.size if kind == "heads" and "mlp" in first else left / one.weights
        gone = max(0, int(np.floor(wanted + 0.5)))
        if kind == "mlp" and gone:
            gone = max(0, one.size - -(-(one.size - gone) // multiple) * multiple)
        if gone >= one.size:
            raise Refused(
                f"ratio = {ratio} leaves none of the {one.size} {'heads' if kind == 'heads' else 'channels'} of a block"
                f"{' (KV heads with their query heads)' if kind == 'heads' else ''}",
                hint="Lower --ratio.",
            )
        counts[kind] = gone
        left -= gone * one.weights
    return {s.name: counts[s.kind] for s in structures}


def global_counts(
    structures: Sequence[Structure], scores: Mapping[str, Array], share: Mapping[Literal["heads", "mlp"], float]
) -> dict[str, int]:
    """Units that go from each structure when all units of a kind are ranked together; each block keeps at least one.

    share: of the units of each kind, how many go.
    """
    counts = {s.name: 0 for s in structures}
    for kind, part in share.items():
        ours = [s for s in structures if s.kind == kind]
        total = round(part * sum(s.size for s in ours))
        ranked = sorted((float(v), s.layer, i, s) for s in ours for i, v in enumerate(scores[s.name]))
        for *_, structure in ranked:
            if total and counts[structure.name] < structure.size - 1:
                counts[structure.name] += 1
                total -= 1
    return counts
