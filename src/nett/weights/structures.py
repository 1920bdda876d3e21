"""What can be cut from the blocks of a language model and leave a model of the same kind: heads and MLP channels.

Where they lie is not known here: the symmetries of the model say it (:mod:`nett.core.symmetry`), since units that may
change places in a function are those that can be taken out of it whole. With grouped-query attention the unit is a KV head with
its query heads, so that the number of query heads a KV head stays; with a single KV head it is a query head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.layers import layer_of, natural
from nett.core.symmetry import Group, Place, Symmetry, of_config
from nett.weights.lora import is_matrix

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


def structures_of(model: Any, parts: Parts = "both") -> list[Structure]:
    """The structures of a transformers model, as its symmetry tells them, block by block. That they can be taken out is
    proved by :func:`nett.weights.narrow.prove_removable`.

    Refused where the family is not known, or has none of the asked kinds.
    """
    symmetry = of_config(told(model), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    found = _sorted_out(symmetry, parts)
    if not found:
        what = {"both": "heads or MLP channels", "heads": "heads", "mlp": "MLP channels"}[parts]
        raise Refused(f"{type(model).__name__} has no {what} of which one could go")
    return found


def _sorted_out(symmetry: Symmetry, parts: Parts) -> list[Structure]:
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


def module_name(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def matrices(model: Any, structures: Iterable[Structure]) -> list[str]:
    """Names of the layers whose matrices hold a structure, in a stable order."""
    names = {module_name(p) for s in structures for p in s.places}
    return sorted((n for n in names if is_matrix(model.get_submodule(n))), key=natural)


def input_masks(
    structures: Iterable[Structure], gone: Mapping[str, Array], widths: Mapping[str, int]
) -> dict[str, Array]:
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
