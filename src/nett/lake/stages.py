"""The stages that leave, of all pairs of tables, those in which one contains the other (R2D2, P03, sections 4.1 to 4.3).

    files    tables of equal bytes go through the rest as one
    schema   the child's columns are among the parent's
    rows     under ``bag``: the child has no more rows
    min-max  NULLs, minima and maxima
    sample   a sampled anti-join: rows of the child, by the smallest hashes, that the parent must have
    verify   every row, by value; what follows from pairs that were verified is not read again

No stage loses a true edge; every stage but the last may keep a false one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import final

from nett.core.progress import report
from nett.lake.discovery import Warning
from nett.lake.equal_tables import equal_tables
from nett.lake.formats import Unreadable
from nett.lake.protocol import Containment, Engine, Lacking, Semantics
from nett.lake.pruning import out_of_range, too_many_rows
from nett.lake.sampling import Samples, Sampling
from nett.lake.schema_graph import contained_schemas
from nett.lake.table import Table
from nett.lake.verifying import Pair, Verification

SMALL = 4 << 20  # bytes of a table beside which others are read


@final
@dataclass(frozen=True)
class Stage:
    """What a stage left, and what it took. ``pairs`` counts every table of equal bytes."""

    name: str
    pairs: int
    bytes_read: int
    seconds: float


@final
@dataclass
class Found:
    """What the stages found. ``groups`` are tables of equal bytes, the first stands for all; ``edges`` lie between
    those that stand for others."""

    groups: list[list[Table]] = field(default_factory=list)
    edges: dict[Pair, Containment] = field(default_factory=dict)
    lacking: dict[Pair, list[Lacking]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    warnings: list[Warning] = field(default_factory=list)
    verified: bool = True


@final
class Search:
    """One search through a lake."""

    def __init__(
        self,
        engine: Engine,
        *,
        semantics: Semantics = "set",
        sampling: Sampling | None = None,
        verify: bool = True,
        least: float = 1.0,
        text: bool = False,
        digest: Callable[[Table], tuple[str | None, int]] | None = None,
    ) -> None:
        self._digest = digest
        self.engine, self.semantics, self.sampling = engine, semantics, sampling or Sampling()
        self.verify, self.least, self.text = verify, least, text
        self.found = Found(verified=verify)
        self._groups: dict[Table, list[Table]] = {}
        self._weight: dict[Table, int] = {}

    def run(self, tables: Iterable[Table]) -> Found:
        """Every stage, one after the other."""
        began = time.monotonic()
        some = list(tables)
        groups, read = equal_tables(some, self._digest)
        read += sum(t.described for t in some)
        self.found.groups = groups
        self._groups = {group[0]: group for group in groups}
        self._weight = {group[0]: len(group) for group in groups}
        count = sum(self._weight.values())
        self.found.stages.append(Stage("files", count * (count - 1), read, time.monotonic() - began))
        parents = self._stage("schema", lambda _: self._by_schema(), {})
        parents = self._stage("min-max" if self.semantics == "set" else "rows", self._by_rows, parents)
        if self.semantics == "bag":
            parents = self._stage("min-max", self._by_range, parents)
        parents = self._stage("sample", self._by_sample, parents)
        if self.verify:
            self._stage("verify", self._verified, parents)
        else:
            self.found.edges = {(c, p): Containment(c.rows or 0, 0) for c, some in parents.items() for p in some}
        return self.found

    def _stage(
        self,
        name: str,
        act: Callable[[Mapping[Table, list[Table]]], dict[Table, list[Table]]],
        parents: Mapping[Table, list[Table]],
    ) -> dict[Table, list[Table]]:
        began, before = time.monotonic(), self.engine.bytes_read
        left = act(parents)
        pairs = sum(self._weight[c] * self._weight[p] for c, some in left.items() for p in some)
        pairs += sum(w * (w - 1) for w in self._weight.values())
        self.found.stages.append(Stage(name, pairs, self.engine.bytes_read - before, time.monotonic() - began))
        return left

    def _by_schema(self) -> dict[Table, list[Table]]:
        return contained_schemas({group[0]: group[0].schema for group in self.found.groups})

    def _by_rows(self, parents: Mapping[Table, list[Table]]) -> dict[Table, list[Table]]:
        """Read what only reading tells, then rule out; under ``set`` together with minima and maxima."""
        concerned = list(dict.fromkeys(t for c, some in parents.items() if some for t in (c, *some)))
        unknown = [t for t in concerned if t.rows is None]
        broken = set(self._each(unknown, "reading values", lambda t: t.learn(self.engine.profile(t))))
        left = {
            c: [p for p in some if p not in broken and not too_many_rows(c, p, self.semantics, self.least)]
            for c, some in parents.items()
            if c not in broken
        }
        return left if self.semantics == "bag" else self._by_range(left)

    def _each(self, tables: list[Table], what: str, act: Callable[[Table], None]) -> Iterator[Table]:
        """Do something with every table; those that cannot be read, said. Small tables, of which only the plans of
        their queries take time, go side by side; a large one has all of the engine's threads and memory."""

        def one(table: Table) -> Unreadable | None:
            try:
                act(table)
            except Unreadable as why:
                return why
            finally:
                report.step(1)
            return None

        report.begin(what, len(tables), "tables")
        small = [t for t in tables if t.bytes <= SMALL]
        with ThreadPoolExecutor(max(1, self.engine.lanes)) as pool:
            failed = dict(zip(small, pool.map(one, small), strict=True))
        failed |= {t: one(t) for t in tables if t.bytes > SMALL}
        report.end()
        for table in tables:
            if (why := failed[table]) is not None:
                self._warn(table, why)
                yield table

    def _warn(self, table: Table, why: Unreadable) -> None:
        for same in self._groups[table]:  # tables of equal bytes are as broken
            self.found.warnings.append(Warning(same.name, why.what, str(why).removeprefix(f"{table.name}: ")))

    def _by_range(self, parents: Mapping[Table, list[Table]]) -> dict[Table, list[Table]]:
        if self.least < 1:  # a row that is not there may be the one out of range
            return dict(parents)
        return {c: [p for p in some if out_of_range(c, p, text=self.text) is None] for c, some in parents.items()}

    def _by_sample(self, parents: Mapping[Table, list[Table]]) -> dict[Table, list[Table]]:
        if self.least < 1 and self.semantics == "bag":  # a sample of distinct rows says nothing of how often they stand
            return dict(parents)
        found = Samples(self.engine, self.sampling, self.least, text=self.text)
        gone, broken = found.refuted([(c, p) for c, some in parents.items() for p in some], self._each)
        return {
            c: [p for p in some if p not in broken and (c, p) not in gone]
            for c, some in parents.items()
            if c not in broken
        }

    def _verified(self, parents: Mapping[Table, list[Table]]) -> dict[Table, list[Table]]:
        last = Verification(self.engine, self.semantics, self.least, text=self.text, blame=self._blame)
        last.run(parents)
        self.found.edges, self.found.lacking = last.edges, last.lacking
        left: dict[Table, list[Table]] = {}
        for child, parent in self.found.edges:
            left.setdefault(child, []).append(parent)
        return left

    def _blame(self, child: Table, parent: Table, why: Unreadable) -> None:
        """Say which of two tables does not hold; or that the two could not be compared, which makes no edge."""
        blamed = False
        for table in (child, parent):
            if not any(w.table == table.name and not w.kept for w in self.found.warnings):
                try:
                    self.engine.profile(table)
                    continue
                except Unreadable as own:
                    self._warn(table, own)
            blamed = True
        if not blamed:
            self.found.warnings.append(Warning(child.name, "not-compared", f"with {parent.name}: {why}", kept=True))


__all__ = ["Found", "Sampling", "Search", "Stage"]
