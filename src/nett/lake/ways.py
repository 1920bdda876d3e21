"""Ways to rebuild tables from others: every one that may be worth taking is supposed, those that a plan takes are tried.

Planning is lazy. A way that nobody tried is supposed to need no selector, or where one was tried that says more, what
follows from it; the planner chooses; the ways that it takes are found and done once, exactly; then it chooses anew with
what they really take, until it takes none that was not tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from nett.core.progress import report
from nett.lake.candidates import Candidates
from nett.lake.exact import NotExact
from nett.lake.inside import unit_of
from nett.lake.prices import Costs
from nett.lake.rebuild import Rebuild
from nett.lake.rebuild_find import Child, find, lay
from nett.lake.rebuild_union import find_union
from nett.lake.table import Table
from nett.lake.workbench import FORMATS, Workbench
from nett.lake.written import Form, form_of

TRIED = 6  # parents of a table from which a way is looked for
LAID = 16  # children whose keys stay on the bench
WHOLE_FILES = frozenset({*FORMATS, "arrow", "jsonl"})  # formats of which a copy of the files is a copy of the table
Way = tuple[Table, tuple[Table, ...]]  # representatives of a child and of its parents


@final
@dataclass
class Ways:
    """``stored``: bytes of selectors that a way takes, or is supposed to; ``proven``: those that were done; ``kept``: why
    a table that is contained in another has none."""

    stored: dict[Way, int] = field(default_factory=dict)
    proven: dict[Way, Rebuild] = field(default_factory=dict)
    laid: dict[Table, tuple[Child, Form]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def reads_of(parent: Table, child: Table) -> int:
    """Bytes of a parent that rebuilding a child reads."""
    return parent.bytes_of(child.schema) if child.schema <= parent.schema else parent.bytes


@final
class Search:
    """The ways of a lake. ``stay``: tables that stay in any case, and why; ``folder``: for the files of selectors;
    ``several``: also look for tables that several others together cover."""

    def __init__(
        self,
        bench: Workbench,
        found: Candidates,
        costs: Costs,
        stay: Mapping[str, str],
        root: Path,
        folder: Path,
        *,
        several: bool,
    ) -> None:
        self._bench, self._found, self._costs, self._folder = bench, found, costs, folder
        self.ways = Ways()
        self._on_bench: dict[Table, Child] = {}
        self._tried: dict[Table, int] = {}
        self._problems: dict[Table, str] = {}
        self._named = 0
        broken = {w.table for w in found.warnings if not w.kept}
        some = {group[0]: group for group in found.groups if group[0].name not in broken}
        self._free = {t: [m for m in group if m.name not in stay] for t, group in some.items()}
        todo = [t for t in self._free if self._free[t] and (found.parents.get(t) or found.wider.get(t))]
        report.begin("looking for ways to rebuild", len(todo), "tables")
        for child in todo:
            single = [p for p in found.parents.get(child, ()) if p in self._free]
            others = [p for p in found.wider.get(child, ()) if p in self._free] if several and not single else []
            try:
                unit_of(child, root)
                self._suppose(child, single)
                self._together(child, sorted(others, key=lambda t: (t.bytes, t.name)))
            except (NotExact, ValueError) as why:  # ValueError: no one file or folder is all of it
                if single:
                    self.ways.kept[child.name] = str(why)
            report.step(1)
        report.end()

    def _worth(self, child: Table, *parents: Table) -> float:
        reads = sum(reads_of(p, child) for p in parents)
        return max(
            self._costs.keeping(t.name, t.bytes) - self._costs.rebuilding(t.name, t.bytes, reads, 0)
            for t in self._free[child]
        )

    def _suppose(self, child: Table, parents: Sequence[Table]) -> None:
        worth = [p for p in parents if self._worth(child, p) > 0]
        if parents and not worth:
            raise NotExact(f"rebuilding it, such as from {parents[0].name!r}, costs more than keeping it")
        if worth and child.rows == 0:
            raise NotExact(EMPTY)
        self.ways.stored |= {(child, (p,)): 0 for p in worth}

    def _together(self, child: Table, parents: Sequence[Table]) -> None:
        """Whether several tables cover one that no other holds is not supposed but looked for."""
        worth = [p for p in parents if self._worth(child, p) > 0]
        if len(worth) < 2 or sum(p.rows or 0 for p in worth) < (child.rows or 0):
            return
        laid = self._laid(child)
        made = self._small(child, find_union(self._bench, laid, worth, self._folder, self._name()))
        named = {p.name: p for p in worth}
        way = child, tuple(named[n] for n in made.parents)
        self.ways.proven[way], self.ways.stored[way] = made, made.bytes

    def prove(self, wanted: Sequence[Way]) -> None:
        """Find and do ways, parents one after the other; those that cannot be are ways no more."""
        report.begin("trying ways to rebuild", len(wanted), "ways")
        for child, (parent, *_) in sorted(wanted, key=lambda w: (w[1][0].name, sorted(w[0].schema), w[0].name)):
            self._prove(child, parent)
            report.step(1)
        report.end()

    def _prove(self, child: Table, parent: Table) -> None:
        way = child, (parent,)
        self._tried[child] = self._tried.get(child, 0) + 1
        try:
            made = self._small(child, find(self._bench, self._laid(child), parent, self._folder, self._name()))
        except NotExact as why:
            del self.ways.stored[way]
            self._problems.setdefault(child, str(why))
        else:
            self.ways.proven[way], self.ways.stored[way] = made, made.bytes
            self._learn(child, parent, made)
        if self._tried[child] >= TRIED:
            for other in self._open(child):
                del self.ways.stored[other]
        if not any(way[0] is child for way in self.ways.stored):
            self.ways.kept[child.name] = self._problems[child]

    def _open(self, child: Table) -> list[Way]:
        return [way for way in self.ways.stored if way[0] is child and way not in self.ways.proven]

    def _learn(self, child: Table, parent: Table, made: Rebuild) -> None:
        """Where no conditions tell the rows in a parent, they tell them in no table that holds the parent; a selector
        there is about as long. What the order takes may differ, but not where rows are repeated."""
        least = sum(part.rows.bytes for part in made.parts if part.rows is not None)
        laid = self._on_bench[child]
        if made.order is not None and laid.distinct < laid.rows:
            least += made.order.bytes
        wider = self._found.parents.get(parent, ())
        for way in self._open(child) if least else ():
            if way[1][0] in wider:
                self.ways.stored[way] = max(self.ways.stored[way], least + 1)

    def _laid(self, child: Table) -> Child:
        """The child on the bench, of which those asked for last stay."""
        if child not in self._on_bench:
            form = form_of(self._bench, child)
            laid = lay(self._bench, child)
            self._on_bench[child] = laid
            self.ways.laid[child] = laid, form
            while len(self._on_bench) > LAID:
                self._bench.drop(self._on_bench.pop(next(iter(self._on_bench))).keys)
        laid = self._on_bench[child] = self._on_bench.pop(child)
        if laid.rows == 0:
            raise NotExact(EMPTY)
        return laid

    def _small(self, child: Table, made: Rebuild) -> Rebuild:
        if made.bytes >= child.bytes:
            raise NotExact(f"its row selector would take {made.bytes:,} bytes, itself it takes {child.bytes:,}")
        return made

    def _name(self) -> str:
        self._named += 1
        return f"w{self._named}"


EMPTY = "it has no rows, so there is nothing to win"
