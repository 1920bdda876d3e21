"""Which layer a tensor belongs to, told from its name alone."""

from __future__ import annotations

from typing import NamedTuple


class LayerName(NamedTuple):
    """``model.layers.3.mlp.up_proj.weight``: stack ``model.layers``, number 3, role ``mlp.up_proj.weight``."""

    stack: str
    number: int
    role: str

    @property
    def layer(self) -> str:
        return f"{self.stack}.{self.number}" if self.stack else str(self.number)


def layer_of(name: str) -> LayerName | None:
    """The layer, found by the first part of the name that is a number; None where there is none."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            return LayerName(".".join(parts[:place]), int(part), ".".join(parts[place + 1 :]))
    return None


def module_of(name: str) -> str:
    """The layer's name, or for tensors outside the layers the name without its last part."""
    found = layer_of(name)
    if found is not None:
        return found.layer
    return name.rpartition(".")[0] or name
