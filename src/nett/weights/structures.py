"""What can be cut from the blocks of a language model and leave a model of the same kind: heads and MLP channels.

Where they lie is not known here: the symmetries of the model say it (:mod:`nett.core.symmetry`), since units that may
change places in a function are those that can be taken out of it whole. With grouped-query attention the unit is a KV head with
its query heads, so that the number of query heads a KV head stays; with a single KV head it is a query head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.layers import layer_of
from nett.core.symmetry import Group, Place, Symmetry, of_config, proved_symmetry

Kind = Literal["heads", "mlp"]
Parts = Literal["both", "heads", "mlp"]


@final
@dataclass(frozen=True, eq=False)
class Structure:
    """Equal units of one block. ``places``: where they lie, tensor by tensor; ``weights``: parameters of one unit."""

    layer: int
    kind: Kind
    group: Group
    weights: int

    @property
    def size(self) -> int:
        return self.group.size

    @property
    def places(self) -> tuple[Place, ...]:
        return self.group.places

    @property
    def name(self) -> str:
        return f"{self.kind} of block {self.layer}"


def structures_of(model: Any, parts: Parts = "both", *, seed: int = 0) -> list[Structure]:
    """The structures of a transformers model, proved on a small random model of its family, block by block.

    Refused where the family is not known, or has none of the asked kinds.
    """
    symmetry, _ = proved_symmetry(shapes_of(model), config=told(model), seed=seed, where=type(model).__name__)
    found = sorted_out(symmetry, parts)
    if not found:
        said = "; ".join(str(r) for r in symmetry.refused[:3])
        what = "heads or MLP channels" if parts == "both" else "heads" if parts == "heads" else "MLP channels"
        raise Refused(f"{type(model).__name__} has no {what} that can be taken out{': ' + said if said else ''}")
    return found


def sorted_out(symmetry: Symmetry, parts: Parts) -> list[Structure]:
    """The groups of a symmetry that are heads or MLP channels of a block."""
    names = {g.name for g in symmetry.groups}
    found = []
    for group in symmetry.groups:
        layer = layer_of(group.name)
        if layer is None:
            continue
        if layer.role == "mlp":
            kind: Kind = "mlp"
        elif layer.role == "heads" or (layer.role == "heads.0.query" and f"{layer.layer}.heads" not in names):
            kind = "heads"
        else:
            continue
        if parts in ("both", kind):
            each = sum(p.run * _rest(symmetry.shapes[p.tensor], p.axis) for p in group.places)
            found.append(Structure(layer.number, kind, group, each))
    return sorted(found, key=lambda s: (s.layer, s.kind))


def _rest(shape: tuple[int, ...], axis: int) -> int:
    return int(np.prod([n for i, n in enumerate(shape) if i != axis]))


def told(model: Any) -> dict[str, Any]:
    """The model's config as a dictionary, with the class that it is."""
    config: dict[str, Any] = model.config.to_dict() | {"architectures": [type(model).__name__]}
    return config


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def of_small(model: Any, parts: Parts) -> list[Structure]:
    """The structures of a model that was made for a proof, not proved again."""
    return sorted_out(of_config(told(model), shapes_of(model)), parts)


def module_name(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def matrices(structures: Iterable[Structure], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the layers whose matrices hold a structure, in a stable order."""
    found = {module_name(p): None for s in structures for p in s.places if len(shapes[p.tensor]) == 2}
    return sorted(found, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])


def input_masks(structures: Iterable[Structure], gone: Mapping[str, Array], widths: Mapping[str, int]) -> dict[str, Array]:
    """Layer -> float32 [in], 0 at the inputs that come from units that are gone: what hides a unit from the model.

    gone: structure's name -> numbers of its units. widths: layer -> number of its inputs.
    """
    masks: dict[str, Array] = {}
    for structure in structures:
        for place in structure.places:
            if place.role == "consumer":
                name = module_name(place)
                mask = masks.setdefault(name, np.ones(widths[name], np.float32))
                mask[place.index[gone[structure.name]].reshape(-1)] = 0
    return masks
