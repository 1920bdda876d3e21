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

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from nett.core.progress import report
from nett.lake.comparing import how_compared
from nett.lake.discovery import Warning
from nett.lake.equal_tables import equal_tables
from nett.lake.formats import Unreadable
from nett.lake.protocol import Containment, Engine, Hashes, Key, Lacking, Semantics
from nett.lake.pruning import out_of_range, too_many_rows
from nett.lake.schema_graph import contained_schemas
from nett.lake.table import Table

LEAST, MOST = 16, 4096  # sampled rows
SHOWN = 20  # rows that a parent lacks
SMALL = 4 << 20  # bytes of a table beside which others are read
Pair = tuple[Table, Table]  # child, parent


@final
@dataclass(frozen=True)
class Sampling:
    """``rows`` of each child are looked for, in ``columns`` of its columns (all where None). Without ``rows``: as many
    as find every pair that lacks at least a share ``epsilon`` of its rows with probability 1 - ``delta``, taken over
    all pairs together."""

    epsilon: float = 0.05
    delta: float = 0.01
    rows: int | None = None
    columns: int | None = None
    seed: int = 0

    def size(self, pairs: int) -> int:
        """t >= ln(pairs / delta) / -ln(1 - epsilon): a pair with a share c of its rows in the parent passes with
        c^t at most. A power of two, so that one more table in the lake seldom asks for other samples of all."""
        if self.rows is not None:
            return self.rows
        wanted = math.log(max(1, pairs) / self.delta) / -math.log1p(-self.epsilon)
        return min(MOST, max(LEAST, 1 << (math.ceil(wanted) - 1).bit_length()))


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
        pairs = [(c, p) for c, some in parents.items() for p in some]
        count = self.sampling.size(len(pairs))
        keys = self._keys(pairs)
        wanted: dict[Table, list[Key]] = {}
        for (child, _), key in keys.items():
            wanted.setdefault(child, []).append(key)
        samples: dict[tuple[Table, Key], Hashes] = {}

        def take(child: Table) -> None:
            for key in dict.fromkeys(wanted[child]):
                samples[child, key] = self.engine.sample(child, key, count)

        broken = set(self._each(list(wanted), "sampling rows", take))
        by_parent: dict[Table, dict[Key, list[Table]]] = {}
        for (child, parent), key in keys.items():
            if child not in broken:
                by_parent.setdefault(parent, {}).setdefault(key, []).append(child)
        gone: set[Pair] = set()

        def look(parent: Table) -> None:
            for key, children in by_parent[parent].items():
                rows = np.unique(np.concatenate([samples[c, key] for c in children]))
                there = self.engine.present(parent, key, rows)
                for child in children:
                    mine = samples[child, key]
                    if mine.size and 1 - np.isin(mine, there).sum() / mine.size > self._tolerated(mine.size):
                        gone.add((child, parent))

        broken |= set(self._each(list(by_parent), "looking for sampled rows", look))
        return {
            c: [p for p in some if p not in broken and (c, p) not in gone]
            for c, some in parents.items()
            if c not in broken
        }

    def _keys(self, pairs: list[Pair]) -> dict[Pair, Key]:
        """Of each pair the columns that are hashed, each as the two are compared."""
        chance = random.Random(self.sampling.seed)
        drawn: dict[Table, tuple[str, ...]] = {}
        found: dict[Pair, Key] = {}
        for child, parent in pairs:
            if child not in drawn:
                names = tuple(c.name for c in child.columns)
                if self.sampling.columns is not None:
                    names = tuple(sorted(chance.sample(names, min(len(names), self.sampling.columns))))
                drawn[child] = names
            found[child, parent] = tuple(
                (n, how_compared(child.column(n), parent.column(n), text=self.text)) for n in drawn[child]
            )
        return found

    def _tolerated(self, size: int) -> float:
        """The share of a sample that may be missing: none, or with ``least`` below 1 what chance makes of it."""
        if self.least >= 1:
            return 0.0
        lost = 1 - self.least
        return lost + 5 * math.sqrt(lost * (1 - lost) / size)

    def _verified(self, parents: Mapping[Table, list[Table]]) -> dict[Table, list[Table]]:
        children: dict[Table, list[Table]] = {}
        for child, some in parents.items():
            for parent in some:
                children.setdefault(parent, []).append(child)

        def size(table: Table) -> tuple[Any, ...]:
            return (len(table.columns), table.rows or 0, table.name)

        held: dict[Table, set[Table]] = {}  # parent -> children, verified
        lacks: dict[Table, set[Table]] = {}
        report.begin("verifying pairs", sum(map(len, children.values())), "pairs")
        for parent in sorted(children, key=size):
            held[parent], lacks[parent] = set(), set()
            for child in sorted(children[parent], key=size, reverse=True):
                try:
                    self._verify(child, parent, held, lacks)
                except Unreadable as why:
                    self._blame(child, parent, why)
                report.step(1)
        report.end()
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

    def _verify(
        self, child: Table, parent: Table, held: Mapping[Table, set[Table]], lacks: Mapping[Table, set[Table]]
    ) -> None:
        through = (m for m in held[parent] if child in held.get(m, ()) and self._chained(child, m, parent))
        if next(through, None) is not None:
            found = Containment(child.rows or 0, 0)
        elif (
            any(c in held.get(child, ()) and self._chained(c, child, parent) for c in lacks[parent]) and self.least >= 1
        ):
            return
        else:
            found = self.engine.missing(child, parent, self.semantics, count=self.least < 1)
        if found.missing == 0:
            held[parent].add(child)
        else:
            lacks[parent].add(child)
        if found.missing == 0 or found.share >= self.least:
            self.found.edges[child, parent] = found
            if found.missing:
                self.found.lacking[child, parent] = self.engine.lacking(child, parent, self.semantics, SHOWN)

    def _chained(self, child: Table, middle: Table, parent: Table) -> bool:
        """Whether containment carries over: the child's columns are compared in one way all along."""
        for column in child.columns:
            ways = {
                how_compared(column, middle.column(column.name), text=self.text),
                how_compared(middle.column(column.name), parent.column(column.name), text=self.text),
                how_compared(column, parent.column(column.name), text=self.text),
            }
            if ways not in ({"value"}, {"text"}):
                return False
        return True
