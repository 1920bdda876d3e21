"""A plan from a lake: which tables to delete, from which retained tables each is rebuilt, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from nett.core.edge import Edge
from nett.core.progress import report
from nett.core.retention import Group, Limits, Retention, Solver, plan_retention
from nett.lake.candidates import Candidates
from nett.lake.exact import NotExact
from nett.lake.inside import unit_of
from nett.lake.prices import Costs
from nett.lake.rebuild import Part, Rebuild
from nett.lake.rebuild_find import Child, find, lay
from nett.lake.rebuild_union import find_union
from nett.lake.table import Table
from nett.lake.workbench import FORMATS, Workbench
from nett.lake.written import Form, form_of

TRIED = 6  # parents of a table from which a way is looked for
ENOUGH = 3  # ways without a selector, after which no more are looked for
WHOLE_FILES = frozenset({*FORMATS, "arrow", "jsonl"})  # formats of which a copy of the files is a copy of the table


@final
@dataclass
class Ways:
    """The ways that were found. ``by``: (representative of the child, of the parents) -> way; ``kept``: why a table
    that is contained in another has none."""

    by: dict[tuple[Table, tuple[Table, ...]], Rebuild] = field(default_factory=dict)
    laid: dict[Table, tuple[Child, Form]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def find_ways(
    bench: Workbench,
    found: Candidates,
    costs: Costs,
    stay: Mapping[str, str],
    root: Path,
    folder: Path,
    *,
    several: bool,
) -> Ways:
    """Every way that could be worth taking, tried. ``stay``: tables that stay in any case, and why; ``folder``: for
    the files of selectors; ``several``: also look for tables that several others together cover."""
    ways = Ways()
    broken = {w.table for w in found.warnings if not w.kept}
    of = {group[0]: group for group in found.groups}
    free = {t: [m for m in of[t] if m.name not in stay] for t in of if t.name not in broken}
    todo = [t for t in free if free[t] and (found.parents.get(t) or found.wider.get(t))]
    sure = {t for t in free if not free[t] or _is_top(t, found)}
    report.begin("finding ways to rebuild", len(todo), "tables")
    for number, child in enumerate(todo):
        some = [p for p in found.parents.get(child, ()) if p in free]
        others = [p for p in found.wider.get(child, ()) if p in free] if several and not some else []
        one = _OfChild(bench, child, free[child], costs, folder, f"w{number}")
        try:
            unit_of(child, root)
            one.look(_in_turn(some, sure), sorted(others, key=_size), ways)
        except (NotExact, ValueError) as why:  # ValueError: no one file or folder is all of it
            if some:
                ways.kept[child.name] = str(why)
        report.step(1)
    report.end()
    return ways


def _is_top(table: Table, found: Candidates) -> bool:
    """Whether all that contain a table are contained in it: of such, at least one stays."""
    return all(table in found.parents.get(p, ()) for p in found.parents.get(table, ()))


def _in_turn(parents: Sequence[Table], sure: set[Table]) -> list[Table]:
    """Those that (or whose equals) stay in any case and those with the fewest bytes to read, by turns: the first can
    serve all of a family, the others are the cheapest to read if they stay."""
    small = sorted(parents, key=_size)
    lines = [[t for t in small if t in sure], small]
    both = [t for i in range(len(small)) for line in lines for t in line[i : i + 1]]
    return list(dict.fromkeys(both))


def _size(table: Table) -> tuple[int, str]:
    return table.bytes, table.name


def reads_of(parent: Table, child: Table) -> int:
    """Bytes of a parent that rebuilding a child reads."""
    return parent.bytes_of(child.schema) if child.schema <= parent.schema else parent.bytes


@final
class _OfChild:
    """The search for ways to one table (that stands for ``free``, which may be deleted)."""

    def __init__(
        self, bench: Workbench, child: Table, free: Sequence[Table], costs: Costs, folder: Path, name: str
    ) -> None:
        self.bench, self.child, self.free, self.costs = bench, child, free, costs
        self.folder, self.name = folder, name

    def worth(self, *parents: Table) -> float:
        reads = sum(reads_of(p, self.child) for p in parents)
        return max(
            self.costs.keeping(t.name, t.bytes) - self.costs.rebuilding(t.name, t.bytes, reads, 0) for t in self.free
        )

    def look(self, some: Sequence[Table], others: Sequence[Table], ways: Ways) -> None:
        """Add what is found. NotExact where nothing is; with ``some``, tables that seem to contain it."""
        single = [p for p in some if self.worth(p) > 0]
        if some and not single:
            raise NotExact(f"rebuilding it, such as from {some[0].name!r}, costs more than keeping it")
        together = [p for p in others if self.worth(p) > 0]
        if not single and (len(together) < 2 or sum(p.rows or 0 for p in together) < (self.child.rows or 0)):
            return
        form = form_of(self.bench, self.child)
        laid = lay(self.bench, self.child)
        try:
            if laid.bag.rows == 0:
                raise NotExact("it has no rows, so there is nothing to win")
            if single:
                self._single(laid, single[:TRIED], ways)
            else:
                made = self._small(find_union(self.bench, laid, together, self.folder, self.name))
                named = {p.name: p for p in together}
                ways.by[self.child, tuple(named[n] for n in made.parents)] = made
            ways.laid[self.child] = (laid, form)
        finally:
            self.bench.drop(laid.keys)

    def _small(self, made: Rebuild) -> Rebuild:
        if made.bytes >= self.child.bytes:
            raise NotExact(f"its row selector would take {made.bytes:,} bytes, itself it takes {self.child.bytes:,}")
        return made

    def _single(self, laid: Child, parents: Sequence[Table], ways: Ways) -> None:
        problems, plain = [], 0
        for number, parent in enumerate(parents):
            try:
                made = self._small(find(self.bench, laid, parent, self.folder, f"{self.name}-{number}"))
            except NotExact as why:
                problems.append(why)
            else:
                ways.by[self.child, (parent,)] = made
                plain += not made.stored
            if plain == ENOUGH:
                return
        if len(problems) == len(parents):
            raise problems[0]


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
        for (child, parents), way in self.ways.by.items():
            if len(parents) == 1:
                groups.append(Group(_names(of[parents[0]]), _names(of[child]), self._edge(way)))
            else:
                edges += [self._edge(way)(c.name, *(p.name for p in parents)) for c in of[child]]
        for group in self._groups:
            groups.append(Group(_names(group), _names(group), self._edge(None)))
        return plan_retention(
            self.sizes, edges, limits, solver=solver, seconds=seconds, worth=self.worth,
            keep=[n for n in self.stay if n in self.sizes], groups=groups,
        )  # fmt: skip

    def _edge(self, way: Rebuild | None) -> _MakeEdge:
        return _MakeEdge(self, way)

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
        made = self.ways.by[self._first[edge.target], tuple(self._first[s] for s in edge.sources)]
        names = {self._first[s].name: s for s in edge.sources}
        parts = tuple(p.model_copy(update={"parent": names[p.parent]}) for p in made.parts)
        return made.model_copy(update={"parts": parts})

    def first(self, name: str) -> Table:
        """The table that stands for a table."""
        return self._first[name]


@final
@dataclass(frozen=True)
class _MakeEdge:
    choice: Choice
    way: Rebuild | None

    def __call__(self, target: str, *sources: str) -> Edge:
        choice, stored = self.choice, 0 if self.way is None else self.way.bytes
        size = choice.sizes[target]
        return Edge(
            kind="equal_table" if self.way is None else "contained_table", target=target, sources=sources,
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
