"""The way in which a child is had from a parent, found and tried: the plainest that gives exactly its bag of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from nett.lake.exact import Bag, NotExact, Own
from nett.lake.rebuild import Condition, Part, Rebuild, rebuild_sql
from nett.lake.rebuild_predicate import learn
from nett.lake.rebuild_selector import WIDE, load_picks, write_bitmap, write_order
from nett.lake.table import Table
from nett.lake.workbench import Workbench, reading


@final
@dataclass
class Child:
    """A table on the bench: its columns, the table (o, h) of its rows' hashes, their tally, and how many are distinct."""

    bench: Workbench
    table: Table
    own: tuple[Own, ...]
    keys: str
    tally: tuple[int, int]
    distinct: int

    @property
    def rows(self) -> int:
        return self.tally[0]

    @property
    def bag(self) -> Bag:
        """Its exact bag."""
        return self.exact[0]

    @cached_property
    def exact(self) -> tuple[Bag, tuple[int, int]]:
        """Its bag, and what its order adds: of a table of which no way is found, nobody asks."""
        return exact_bag(self.bench, self.table, self.own)


def lay(bench: Workbench, table: Table) -> Child:
    """Read a child. NotExact where it cannot be, exactly."""
    own = tuple(bench.own(table))
    keys = bench.keys(table, own)
    distinct = int(bench.one(f"SELECT count(DISTINCT h) FROM {keys}")[0])
    return Child(bench, table, own, keys, bench.tally(keys), distinct)


def exact_bag(bench: Workbench, table: Table, own: Sequence[Own]) -> tuple[Bag, tuple[int, int]]:
    """Of a table as it lies there."""
    values = bench.projected(own, table)
    with reading(table):
        return bench.bag(bench.source(table), values, [o.type for o in own])


def find(bench: Workbench, child: Child, parent: Table, folder: Path, name: str) -> Rebuild:
    """The way from one parent. Files of a selector go to ``folder`` under names that begin with ``name``.

    NotExact where there is none.
    """
    keys = bench.parent_keys(parent, child.own)
    with reading(child.table, parent):
        made = _plain(bench, child, parent, keys) or _selector(bench, child, parent, keys, folder, name)
    return tried(bench, child, made, {parent.name: parent}, folder)


def tried(bench: Workbench, child: Child, made: Rebuild, tables: Mapping[str, Table], folder: Path) -> Rebuild:
    """A way after it was done once. NotExact where it does not give the child's bag, or by a selector its order."""
    got, placed = rebuilt_bag(bench, made, child.own, tables, folder)
    bag, as_it_is = child.exact
    if got != bag or (made.ordered and made.stored and placed != as_it_is):
        which = "rows in another order" if got == bag else f"other rows ({got} instead of {bag})"
        raise NotExact(f"rebuilding it from {', '.join(map(repr, tables))} gives {which}")
    return made if placed == as_it_is or not made.ordered else made.model_copy(update={"ordered": False})


def rebuilt_bag(
    bench: Workbench, rebuild: Rebuild, own: Sequence[Own], tables: Mapping[str, Table], folder: Path
) -> tuple[Bag, tuple[int, int]]:
    """The exact bag that a rebuild gives, by doing it, and what its order adds."""
    picks = load_picks(bench, rebuild, folder, row_counts(bench, rebuild, tables))
    names = [f"c{i}" for i in range(len(own))]
    with reading(*tables.values()):
        sql = rebuild_sql(rebuild, own, tables, bench.source, bench.projected, picks)
        rows, _, by = sql.rpartition(" ORDER BY ")
        place = "i" if picks is not None else f"row_number() OVER (ORDER BY {by}) - 1"
        listed = ", ".join(names)
        rows = rows.replace(f"SELECT {listed} FROM", f"SELECT {listed}, {place if rebuild.ordered else 0} AS o FROM", 1)
        got = bench.bag(f"({rows})", names, [o.type for o in own])
    if picks is not None:
        bench.drop(picks)
    return got


def row_counts(bench: Workbench, rebuild: Rebuild, tables: Mapping[str, Table]) -> dict[str, int]:
    """Rows of the parents of which a selector takes all."""
    picked = rebuild.stored or len(rebuild.parts) > 1
    whole = {p.parent for p in rebuild.parts if p.rows is None} if picked else set()
    return {name: int(bench.one(f"SELECT count(*) FROM {bench.source(tables[name])}")[0]) for name in sorted(whole)}


def _plain(bench: Workbench, child: Child, parent: Table, keys: str) -> Rebuild | None:
    """Whole, distinct, or by a predicate; None where none of them gives the bag."""
    rows, _ = tally = bench.tally(keys)
    if tally == child.tally:
        return Rebuild(kind="whole", parts=(Part(parent=parent.name),), ordered=_same_order(bench, child.keys, keys))
    marked = bench.make(f"SELECT o, h FROM {keys} SEMI JOIN {child.keys} c USING (h)")
    try:
        inside = bench.tally(marked)
        different = int(bench.one(f"SELECT count(DISTINCT h) FROM {marked}")[0])
        if different < child.distinct:
            lacking = child.distinct - different
            raise NotExact(
                f"{lacking:,} of its distinct rows are not in {parent.name!r} with these very values (a scan takes 1 for "
                "1.0, a rebuild does not)"
            )
        plain, single = inside == child.tally, child.distinct == child.rows
        if not plain and not single:
            return None
        where: tuple[Condition, ...] | None = ()
        if inside[0] < rows:  # else all rows are marked, so they can only be distinct ones
            where = learn(bench, parent, marked)
        if where is None:
            return None
        taken = marked if plain else f"(SELECT min(o) AS o, h FROM {marked} GROUP BY h)"
        return Rebuild(
            kind="predicate" if where else "distinct",
            parts=(Part(parent=parent.name, where=where, distinct=not plain),),
            ordered=_same_order(bench, child.keys, taken),
        )
    finally:
        bench.drop(marked)


def _same_order(bench: Workbench, child: str, rows: str) -> bool:
    """Whether rows (o, h), by their ordinals, are the child's, one after the other."""
    ranked = "SELECT h, row_number() OVER (ORDER BY o) AS r FROM "
    told = bench.one(
        f"SELECT (SELECT count(*) FROM {child}), (SELECT count(*) FROM ({ranked}{child}) c"
        f" JOIN ({ranked}{rows}) p ON c.r = p.r AND c.h = p.h)"
    )
    return bool(told[0] == told[1])


def _selector(bench: Workbench, child: Child, parent: Table, keys: str, folder: Path, name: str) -> Rebuild:
    pairs = pair(bench, child.keys, keys)
    try:
        return stored(bench, child, [(parent, pairs, False)], folder, name, "selector")
    finally:
        bench.drop(pairs)


def pair(bench: Workbench, child: str, parent: str, *, again: bool = True) -> str:
    """A table (co, po): each of the child's rows with one of the parent's, a different one for each as far as there are
    so many equal rows, in order; its name. Rows that the parent lacks are not in it, and without ``again`` neither are
    those beyond as many as it has."""
    turn = (
        "(row_number() OVER (PARTITION BY h ORDER BY o) - 1) % n + 1"
        if again
        else "row_number() OVER (PARTITION BY h ORDER BY o)"
    )
    return bench.make(
        f"WITH n AS (SELECT h, count(*) AS n FROM {parent} SEMI JOIN {child} c USING (h) GROUP BY h),"
        f" c AS (SELECT o, h, {turn} AS r FROM {child} JOIN n USING (h)),"
        f" p AS (SELECT o, h, row_number() OVER (PARTITION BY h ORDER BY o) AS r"
        f" FROM {parent} SEMI JOIN n USING (h))"
        " SELECT c.o AS co, p.o AS po FROM c JOIN p ON c.h = p.h AND c.r = p.r"
    )


def stored(
    bench: Workbench,
    child: Child,
    parts: Sequence[tuple[Table, str, bool]],
    folder: Path,
    name: str,
    kind: str,
) -> Rebuild:
    """Selectors for parts (parent, its pairs, whether all of its rows are taken, once each), and the order where it is
    not theirs."""
    places = bench.named()
    bench.db.execute(f"CREATE TABLE {places} (co BIGINT, place BIGINT)")
    made, at = [], 0
    try:
        for number, (parent, pairs, whole) in enumerate(parts):
            taken = bench.make(
                f"SELECT po, row_number() OVER (ORDER BY po) - 1 AS k FROM (SELECT DISTINCT po FROM {pairs})"
            )
            bench.db.execute(f"INSERT INTO {places} SELECT co, {at} + k FROM {pairs} JOIN {taken} USING (po)")
            rows = None
            if not whole:
                most = int(bench.one(f"SELECT coalesce(max(po), 0) + 1 FROM {taken}")[0])
                sql = f"SELECT po FROM {taken} ORDER BY po"
                rows = write_bitmap(bench, sql, folder / f"{name}-{number}", most)
            at += int(bench.one(f"SELECT count(*) FROM {taken}")[0])
            bench.drop(taken)
            made.append(Part(parent=parent.name, rows=rows))
        moved = bench.one(
            f"SELECT count(*) FROM (SELECT place, row_number() OVER (ORDER BY co) - 1 AS i FROM {places}) WHERE place <> i"
        )[0]
        order = None
        if moved or at != child.rows:
            wide = at > WIDE
            sql = f"SELECT place FROM {places} ORDER BY co"
            order = write_order(bench, sql, folder / name, wide=wide)
    finally:
        bench.drop(places)
    return Rebuild(kind=kind, parts=tuple(made), order=order, ordered=True)  # type: ignore[arg-type]
