"""A plan from a lake: which tables to delete, from which retained tables each is rebuilt, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from nett.core.edge import Edge
from nett.core.retention import Group, Limits, Retention, Solver, plan_retention
from nett.lake.candidates import Candidates
from nett.lake.inside import unit_of
from nett.lake.prices import Costs
from nett.lake.rebuild import Part, Rebuild
from nett.lake.table import Table
from nett.lake.ways import WHOLE_FILES, Way, Ways, reads_of


@final
class Choice:
    """The planner's question, made from ways: edges between all tables, what each is worth, and the answer."""

    def __init__(self, found: Candidates, ways: Ways, costs: Costs, stay: Mapping[str, str], root: Path) -> None:
        self.found, self.ways, self.costs, self.stay = found, ways, costs, stay
        self.sizes = {t.name: t.bytes for t in found.tables}
        self._table = {t.name: t for t in found.tables}
        self._first = {t.name: group[0] for group in found.groups for t in group}
        self._groups = [g for g in found.groups if len(g) > 1 and g[0].format in WHOLE_FILES and _movable(g, root)]

    def ask(self, limits: Limits, solver: Solver, seconds: float) -> Retention:
        edges, groups = [], []
        of = {group[0]: group for group in self.found.groups}
        for (child, parents), stored in self.ways.stored.items():
            made = _MakeEdge(self, stored)
            if len(parents) == 1:
                groups.append(Group(_names(of[parents[0]]), _names(of[child]), made))
            else:
                edges += [made(c.name, *(p.name for p in parents)) for c in of[child]]
        for group in self._groups:
            groups.append(Group(_names(group), _names(group), _MakeEdge(self, None)))
        return plan_retention(
            self.sizes, edges, limits, solver=solver, seconds=seconds, worth=self.worth,
            keep=[n for n in self.stay if n in self.sizes], groups=groups,
        )  # fmt: skip

    def reads(self, target: str, sources: Sequence[str]) -> int:
        return sum(reads_of(self._table[s], self._table[target]) for s in sources)

    def worth(self, edge: Edge) -> float:
        """What taking an edge saves over the prices' months."""
        size = self.sizes[edge.target]
        stored = size - edge.bytes_freed
        reads = self.reads(edge.target, edge.sources)
        return self.costs.keeping(edge.target, size) - self.costs.rebuilding(edge.target, size, reads, stored)

    def way(self, edge: Edge) -> Rebuild:
        """How the target of a taken edge is rebuilt from its sources."""
        if edge.kind == "equal_table":
            return Rebuild(kind="copy", parts=(Part(parent=edge.sources[0]),), ordered=True)
        made = self.ways.proven[self.asked(edge)]
        names = {self._first[s].name: s for s in edge.sources}
        parts = tuple(p.model_copy(update={"parent": names[p.parent]}) for p in made.parts)
        return made.model_copy(update={"parts": parts})

    def asked(self, edge: Edge) -> Way:
        """The way that an edge takes, by those that stand for its tables."""
        return self._first[edge.target], tuple(self._first[s] for s in edge.sources)

    def unproven(self, found: Retention) -> list[Way]:
        """The ways that an answer takes and that nobody has tried yet."""
        taken = dict.fromkeys(self.asked(e) for e in found.taken if e.kind != "equal_table")
        return [way for way in taken if way not in self.ways.proven]

    def first(self, name: str) -> Table:
        """The table that stands for a table."""
        return self._first[name]


@final
@dataclass(frozen=True)
class _MakeEdge:
    choice: Choice
    stored: int | None  # bytes of selectors; None: a copy of equal bytes

    def __call__(self, target: str, *sources: str) -> Edge:
        choice, stored = self.choice, self.stored or 0
        size = choice.sizes[target]
        return Edge(
            kind="equal_table" if self.stored is None else "contained_table", target=target, sources=sources,
            method="lake/apply", bytes_freed=max(0, size - stored),
            seconds=choice.costs.seconds(size, choice.reads(target, sources)), error=0.0, guarantee="exact",
        )  # fmt: skip


def _names(group: Sequence[Table]) -> tuple[str, ...]:
    return tuple(t.name for t in group)


def _movable(group: Sequence[Table], root: Path) -> bool:
    try:
        return all(unit_of(t, root) for t in group)
    except ValueError:
        return False
