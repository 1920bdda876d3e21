"""The slices of a group's units in the live parameters of a module: to be looked at, scaled and zeroed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.structure.units import Structure


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The slices of the units in one parameter: ``run`` positions a unit along ``axis``. ``index`` [units * run], or
    None for the whole axis in order."""

    name: str
    parameter: Any
    axis: int
    index: Any
    units: int
    run: int

    def rows(self, tensor: Any) -> Any:
        """``[units, n]``: each unit's numbers in a tensor of the parameter's shape (the parameter, a gradient)."""
        moved = tensor.movedim(self.axis, 0)
        return (moved if self.index is None else moved[self.index.to(tensor.device)]).reshape(self.units, -1)

    def at(self, units: Any) -> Any:
        """Positions along the axis of some units."""
        import torch

        if self.index is not None:
            return self.index.reshape(self.units, self.run)[units].reshape(-1)
        return (units[:, None] * self.run + torch.arange(self.run)).reshape(-1)


@final
@dataclass(frozen=True, eq=False)
class Slices:
    """A group: its name, the number of its units, and where they lie. Each parameter once, though it have two names."""

    name: str
    unit: str
    size: int
    parts: tuple[Part, ...]

    @property
    def numbers(self) -> int:
        """How many numbers a unit has in all its slices."""
        return sum(int(p.rows(p.parameter).shape[1]) for p in self.parts)

    def norms(self) -> Any:
        """``[units]``: the Euclidean norm of each unit's numbers."""
        import torch

        total = torch.zeros(self.size)
        with torch.no_grad():
            for part in self.parts:
                total = total.to(part.parameter.device) + part.rows(part.parameter).float().square().sum(1)
        return total.sqrt()

    def scale(self, units: Any, factor: float) -> None:
        """Multiply all numbers of some units (int64 ``[k]``); by 0 they are 0 whatever they were."""
        import torch

        with torch.no_grad():
            for part in self.parts:
                at = part.at(units.cpu()).to(part.parameter.device)
                moved = part.parameter.detach().movedim(part.axis, 0)
                if factor == 0:
                    moved.index_fill_(0, at, 0)
                else:
                    moved[at] *= factor


def slices_of(module: Any, structure: Structure) -> list[Slices]:
    """The groups of ``structure`` in the parameters of ``module``; buffers, such as running means, are left alone."""
    import torch

    parameters: Mapping[str, Any] = dict(module.named_parameters())
    found = []
    for group in structure.groups:
        parts = []
        for place in structure.members(group):
            parameter = parameters.get(place.tensor)
            if parameter is None:
                continue
            index = None
            if not place.whole(parameter.shape[place.axis]):
                index = torch.from_numpy(np.array(place.index.reshape(-1)))
            parts.append(Part(place.tensor, parameter, place.axis, index, group.size, place.run))
        found.append(Slices(group.name, group.unit, group.size, tuple(parts)))
    return found
