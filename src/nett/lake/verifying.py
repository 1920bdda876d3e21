"""The last stage: every pair by value, all children of a parent together; what follows from pairs that were looked at
is not read.

If c is in m and m is in p, then c is in p. So with c in m: what is not in p though c's own part is, leaves m out of p; and
with p in m, what is not in m is not in p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from nett.core.progress import report
from nett.lake.comparing import How, how_compared
from nett.lake.formats import Unreadable
from nett.lake.protocol import Containment, Engine, Lacking, Semantics
from nett.lake.table import Table

SHOWN = 20  # rows that a parent lacks
WHOLE = 2**53  # integers closer to zero are floats, each another
Pair = tuple[Table, Table]  # child, parent


@final
class Verification:
    """``least``: the containment from which pairs are edges. ``blame(child, parent, why)`` hears of pairs that could
    not be compared."""

    def __init__(
        self,
        engine: Engine,
        semantics: Semantics,
        least: float,
        *,
        text: bool,
        blame: Callable[[Table, Table, Unreadable], None],
    ) -> None:
        self._engine, self._semantics, self._least, self._text, self._blame = engine, semantics, least, text, blame
        self._held: dict[Table, set[Table]] = {}  # parent -> children, verified
        self._within: dict[Table, list[Table]] = {}  # the same, by child
        self._lacks: dict[Table, set[Table]] = {}
        self.edges: dict[Pair, Containment] = {}
        self.lacking: dict[Pair, list[Lacking]] = {}

    def run(self, parents: Mapping[Table, Sequence[Table]]) -> None:
        """Look at every child with its parents; small parents first, so that what holds among them carries over."""
        children: dict[Table, list[Table]] = {}
        for child, some in parents.items():
            for parent in some:
                children.setdefault(parent, []).append(child)
        report.begin("verifying pairs", sum(map(len, children.values())), "pairs")
        for parent in sorted(children, key=_size):
            self._held[parent], self._lacks[parent] = set(), set()
            pending = sorted(children[parent], key=_size, reverse=True)
            while pending:
                some = list(self._first(pending, parent))
                for child, found in self._looked_at(some, parent):
                    self._keep(child, parent, found)
                pending = list(self._open([c for c in pending if c not in set(some)], parent))
        report.end()

    def _first(self, pending: Sequence[Table], parent: Table) -> Iterator[Table]:
        """Those to look at now, the ones that hold most others first: what is in one of them may follow."""
        left = list(self._open(pending, parent))
        inside = {m: self._held.get(m, set()) for m in left}
        taken: list[Table] = []
        for child in sorted(left, key=lambda m: -sum(c in inside[m] for c in left)):
            if not any(child in inside[m] and self._chained(child, m, parent) for m in taken):
                taken.append(child)
                yield child

    def _open(self, pending: Sequence[Table], parent: Table) -> Iterator[Table]:
        """Those of which nothing follows; the others are settled."""
        for child in pending:
            if any(child in self._held.get(m, ()) and self._chained(child, m, parent) for m in self._held[parent]):
                self._keep(child, parent, Containment(child.rows or 0, 0))
            elif self._least >= 1 and self._is_out(child, parent):
                self._lacks[parent].add(child)
                report.step(1)
            else:
                yield child

    def _is_out(self, child: Table, parent: Table) -> bool:
        """Whether a part of the child is not in the parent, or it is not in what the parent is a part of."""
        held = self._held.get(child, ())
        if any(c in held and self._chained(c, child, parent) for c in self._lacks[parent]):
            return True
        wider = self._within.get(parent, ())
        return any(child in self._lacks[m] and self._chained(child, parent, m) for m in wider)

    def _looked_at(self, children: Sequence[Table], parent: Table) -> Iterator[tuple[Table, Containment]]:
        """Together, or where something does not hold one by one, so that it is known what."""

        def ask(some: Sequence[Table]) -> list[Containment]:
            return self._engine.missing(some, parent, self._semantics, count=self._least < 1)

        try:
            found = ask(children) if children else []
        except Unreadable as why:
            if len(children) == 1:
                self._blame(children[0], parent, why)
                report.step(1)
                return
            for child in children:
                yield from self._looked_at([child], parent)
        else:
            yield from zip(children, found, strict=True)

    def _keep(self, child: Table, parent: Table, found: Containment) -> None:
        report.step(1)
        (self._lacks if found.missing else self._held)[parent].add(child)
        if not found.missing:
            self._within.setdefault(child, []).append(parent)
        if found.missing == 0 or found.share >= self._least:
            self.edges[child, parent] = found
            if found.missing:
                self.lacking[child, parent] = self._engine.lacking(child, parent, self._semantics, SHOWN)

    def _chained(self, child: Table, middle: Table, parent: Table) -> bool:
        """Whether containment carries over by the ways in which the child's columns are compared."""
        for column in child.columns:
            name = column.name
            inner, outer = middle.column(name), parent.column(name)
            first = how_compared(column, inner, text=self._text)
            second = how_compared(inner, outer, text=self._text)
            both = how_compared(column, outer, text=self._text)
            if not carries(first, second, both, inner.kind) and not _are_real(name, child, middle, parent):
                return False
        return True


def carries(first: How, second: How, both: How, kind: str) -> bool:
    """Whether values that are equal to a middle's in the first way, and it to others in the second, are equal to these
    in the way of ``both``. ``kind``: of the middle.

    One way all along: always. By value and then as floats or timestamps, or the other way round: what is equal by value
    is so after the cast; of decimals not, since two scales may round apart. What is equal as floats need not be so by
    value, but where every number is its own float (:func:`_real`).
    """
    if first == second == both:
        return True
    return both in ("float", "timestamp") and {first, second} == {"value", both} and kind != "decimal"


def _are_real(name: str, *tables: Table) -> bool:
    return all(_real(t, name) for t in tables)


def _real(table: Table, name: str) -> bool:
    """Whether a column's numbers are compared as the numbers they are, also as floats of 64 bits."""
    column, span = table.column(name), table.spans.get(name)
    if column.kind == "integer":
        return span is not None and span.low is not None and span.low > -WHOLE and span.high < WHOLE
    return column.kind == "float"


def _size(table: Table) -> tuple[Any, ...]:
    return len(table.columns), table.rows or 0, table.name
