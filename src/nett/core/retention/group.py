"""Many edges said in one: any of some targets from any one of some sources, as where tables are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from nett.core.edge import Edge
from nett.core.retention.problem import Way

FEW = 4096  # edges of a group that are simply made
MOST_SOURCES = 64  # of one larger group that are considered

AsWay = Callable[[Edge], Way | None]


@final
@dataclass(frozen=True)
class Group:
    """Each of ``targets`` can be rebuilt from any one of ``sources`` other than itself.

    Stands for ``len(sources) * len(targets)`` edges, of which few are made. Equal assets are both: 5,000 of them are
    25 million edges. ``sources`` are in order: for every target, ``edge(target, source)`` is worth no more, takes no
    fewer seconds and has no smaller error than that of a source before it, such as when the fewest bytes to read come
    first.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    edge: Callable[[str, str], Edge]  # (target, source)

    def __len__(self) -> int:
        return len(self.sources) * len(self.targets)

    def first(self, target: str) -> Edge | None:
        """The best edge to a target."""
        source = next((s for s in self.sources[:2] if s != target), None)
        return None if source is None else self.edge(target, source)


@final
@dataclass(frozen=True)
class Expanded:
    """The ways of groups that a best plan may need. ``whole``: there is a best plan among them; where False, sources
    were left out for their number, and ``most`` is what all targets gain at most, by any way."""

    ways: list[Way]
    whole: bool
    most: float


def expand(groups: Sequence[Group], ways: Sequence[Way], as_way: AsWay) -> Expanded:
    """Make the edges of groups; ``ways``: those that were given one by one.

    A source u of a large group is left out where an earlier one, w, is kept instead at no loss: rebuilding u from w
    gains no less than w itself gains by any way, and u serves nobody outside the group (each target of u has a no
    worse way from w by the order of the group).
    """
    most: dict[str, float] = {}
    for way in ways:
        most[way.target] = max(most.get(way.target, 0.0), way.gain)
    for group in groups:
        for target in group.targets:
            edge = group.first(target)
            found = as_way(edge) if edge is not None else None
            if found is not None:
                most[target] = max(most.get(target, 0.0), found.gain)
    serves = Counter(s for way in ways for s in set(way.sources))
    serves.update(s for group in groups for s in set(group.sources))
    made: list[Way] = []
    whole = True
    for group in groups:
        sources = group.sources
        if len(group) > FEW:
            sources = _needed(group, most, serves, as_way)
            whole &= len(sources) <= MOST_SOURCES
        for source in sources[:MOST_SOURCES] if len(group) > FEW else sources:
            for target in group.targets:
                made_one = as_way(group.edge(target, source)) if target != source else None
                if made_one is not None:
                    made.append(made_one)
    return Expanded(made, whole, sum(most.values()))


def _needed(group: Group, most: Mapping[str, float], serves: Mapping[str, int], as_way: AsWay) -> tuple[str, ...]:
    """The sources that no other stands in for; one more than are considered says that there are too many."""
    targets = set(group.targets)
    needed: list[str] = []
    for source in group.sources:
        if source in targets and serves[source] == 1:
            found = (as_way(group.edge(source, other)) for other in needed)
            pairs = zip(found, needed, strict=True)
            if any(way is not None and way.gain >= most.get(other, 0.0) for way, other in pairs):
                continue
        needed.append(source)
        if len(needed) > MOST_SOURCES or not most.get(source):
            break
    return tuple(needed)
