"""Units that can be cut out of a network, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from nett.core.errors import UsageError, did_you_mean
from nett.core.symmetry.groups import Group, Place, Refusal, Role

MAKING: tuple[Role, ...] = ("producer", "state")
ALL: tuple[Role, ...] = ("producer", "state", "consumer")


@final
@dataclass(frozen=True, eq=False)
class Structure:
    """The removable units of a network, in the groups that :mod:`nett.core.symmetry` derives.

    zeroed: group -> the roles of the places that, once they are zero, make a unit as good as removed: what makes it and
    what belongs to it on its way, or also what reads it where the way does not keep zeros zero (a sigmoid).
    refused: groups and parts that stay whole, with the reason. example: what the network is called with.
    """

    groups: tuple[Group, ...]
    zeroed: Mapping[str, tuple[Role, ...]]
    refused: tuple[Refusal, ...] = ()
    example: Any = None

    @property
    def size(self) -> int:
        """The number of units in all groups."""
        return sum(g.size for g in self.groups)

    def group(self, name: str) -> Group:
        found = next((g for g in self.groups if g.name == name), None)
        if found is None:
            raise UsageError(f"no group is called {name!r}.{did_you_mean(name, [g.name for g in self.groups])}")
        return found

    def members(self, group: Group) -> list[Place]:
        """The places of a group that are zero where a unit is as good as removed."""
        return [p for p in group.places if p.role in self.zeroed[group.name]]
