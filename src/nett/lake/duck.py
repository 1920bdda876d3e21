"""The verbs of the room on DuckDB, in this process, out of core.

Tables whose format keeps no columns apart (text files) are read once, into a temporary database beside which memory
spills; all others are read where they lie, only the columns that are asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np

from nett.lake.comparing import How, form_of, how_compared
from nett.lake.database import open_database
from nett.lake.formats import Unreadable, ailing, module_of, place_of
from nett.lake.formats.text_kinds import LONG, NUMBER
from nett.lake.place import serve
from nett.lake.protocol import Containment, Hashes, Key, Lacking, Semantics
from nett.lake.table import Column, Profile, Span, Table

MOST = 10**18 - 1  # whole numbers up to this are compared as integers
WORD, FRACTION, INTEGER, TOO_LONG = range(4)  # what a value of a text file is; patterns, which are slow, come last


@final
class Duck:
    """DuckDB as the engine of a lake. ``memory``: such as 512MB; ``text``: every comparison by text."""

    def __init__(self, *, memory: str | None = None, threads: int | None = None, text: bool = False) -> None:
        self._db, self._folder = open_database("staged.duckdb", memory=memory, threads=threads)
        self._db.execute("PRAGMA disable_checkpoint_on_shutdown")  # the file is thrown away
        self.lanes = threads or min(8, os.cpu_count() or 1)
        self._lock, self._local = threading.Lock(), threading.local()
        self._text = text
        self._staged: dict[Table, str] = {}
        self._numbered = 0
        self.bytes_read = 0
        self.version = str(self._db.execute("SELECT version()").fetchall()[0][0])

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()

    def profile(self, table: Table) -> Profile:
        source = self._source(table, frozenset(c.name for c in table.columns))
        with _told(table):
            return self._profile(table, source)

    def _profile(self, table: Table, source: str) -> Profile:
        if all(c.raw for c in table.columns):
            return self._profile_text(table, source)
        values = [place_of(c) for c in table.columns]
        rows, *there = self._one(f"SELECT count(*), {', '.join(f'count({v})' for v in values)} FROM {source}")
        return Profile(rows, {}, {c.name: Span(nulls=rows - n) for c, n in zip(table.columns, there, strict=True)})

    def _profile_text(self, table: Table, source: str) -> Profile:
        """All columns below one another, so that the plan is no longer for a wide table than for a narrow one."""
        values = ", ".join(place_of(c) for c in table.columns)
        long = f"SELECT unnest([{values}]) AS v, unnest(range({len(table.columns)})) AS i FROM {source}"
        number = f"FILTER (c > {WORD})"
        found = self._here.execute(
            f"SELECT i, count(*), count(v), min(c), max(c), min(d) {number}, max(d) {number}"
            f" FROM (SELECT i, v, {_class('v')} AS c, TRY_CAST(v AS DOUBLE) AS d FROM ({long})) GROUP BY i"
        ).fetchall()
        rows, kinds, spans = 0, {}, {c.name: Span(nulls=0) for c in table.columns}
        for i, rows, there, least, most, low, high in found:
            name = table.columns[i].name
            spans[name] = Span(low, high, rows - there)
            if there and least > WORD and most < TOO_LONG:
                kinds[name] = "integer" if least == INTEGER else "float"
        return Profile(rows, kinds, spans)

    def sample(self, table: Table, key: Key, count: int) -> Hashes:
        hashed = self._hashed(table, key)
        return self._hashes(f"SELECT DISTINCT h FROM ({hashed}) ORDER BY h LIMIT {int(count)}", table)

    def present(self, table: Table, key: Key, wanted: Hashes) -> Hashes:
        if not wanted.size:
            return wanted
        import pyarrow as pa

        here = self._here
        here.register("wanted", pa.table({"h": pa.array(wanted)}))
        hashed = self._hashed(table, key)
        most = int(wanted.max())
        found = self._hashes(
            f"SELECT DISTINCT h FROM ({hashed}) WHERE h <= {most} AND h IN (SELECT h FROM wanted) ORDER BY h", table
        )
        here.unregister("wanted")
        return found

    def missing(self, child: Table, parent: Table, semantics: Semantics, *, count: bool = False) -> Containment:
        mine, its, same = self._side_by_side(child, parent)
        with _told(child, parent):
            lacking = self._one(f"SELECT count(*) FROM ({mine}) c ANTI JOIN ({its}) p ON {same}")[0]
            if semantics == "set" and (not count or not lacking):
                return Containment(int(child.rows or lacking), lacking)
            if semantics == "set":
                mine = mine.replace("SELECT", "SELECT DISTINCT", 1)
                lacking = self._one(f"SELECT count(*) FROM ({mine}) c ANTI JOIN ({its}) p ON {same}")[0]
                return Containment(self._one(f"SELECT count(*) FROM ({mine})")[0], lacking)
            if lacking and not count:
                return Containment(int(child.rows or lacking), lacking)
            rows, lacking = self._one(
                f"WITH c AS (SELECT *, count(*) AS n FROM ({mine}) GROUP BY ALL),"
                f" p AS (SELECT *, count(*) AS n FROM ({its}) c SEMI JOIN c AS d ON {same.replace('p.', 'd.')}"
                " GROUP BY ALL)"
                f" SELECT coalesce(sum(c.n), 0), coalesce(sum(greatest(c.n - coalesce(p.n, 0), 0)), 0)"
                f" FROM c LEFT JOIN p ON {same}"
            )
            return Containment(int(rows), int(lacking))

    def lacking(self, child: Table, parent: Table, semantics: Semantics, most: int) -> list[Lacking]:
        mine, its, same = self._side_by_side(child, parent)
        limit = f"ORDER BY ALL NULLS FIRST LIMIT {int(most)}"
        if semantics == "set":
            asked = f"SELECT DISTINCT c.*, 1 AS n FROM ({mine}) c ANTI JOIN ({its}) p ON {same} {limit}"
        else:
            asked = (
                f"SELECT c.* REPLACE (c.n - coalesce(p.n, 0) AS n) FROM (SELECT *, count(*) AS n FROM ({mine}) GROUP BY ALL) c"
                f" LEFT JOIN (SELECT *, count(*) AS n FROM ({its}) GROUP BY ALL) p ON {same}"
                f" WHERE c.n > coalesce(p.n, 0) {limit}"
            )
        with _told(child, parent):
            return [(tuple(row), int(n)) for *row, n in self._here.execute(asked).fetchall()]

    def _side_by_side(self, child: Table, parent: Table) -> tuple[str, str, str]:
        """(rows of the child as c, those of the parent as p, where they are equal), columns named k0, k1, …"""
        inner, outer = [], []
        for column in child.columns:
            how = how_compared(column, parent.column(column.name), text=self._text)
            inner.append(_compared(column, how))
            outer.append(_compared(parent.column(column.name), how))
        mine = f"SELECT {_numbered(inner)} FROM {self._source(child, child.schema)}"
        its = f"SELECT {_numbered(outer)} FROM {self._source(parent, child.schema)}"
        return mine, its, " AND ".join(f"c.k{i} IS NOT DISTINCT FROM p.k{i}" for i in range(len(inner)))

    def _hashed(self, table: Table, key: Key) -> str:
        values, columns = [_compared(table.column(name), how) for name, how in key], [name for name, _ in key]
        return f"SELECT hash({', '.join(values)}) AS h FROM {self._source(table, frozenset(columns))}"

    def _hashes(self, sql: str, table: Table) -> Hashes:
        with _told(table):
            found: Hashes = self._here.execute(sql).fetchnumpy()["h"].astype(np.uint64, copy=False)
            return found

    def _one(self, sql: str) -> Any:
        return self._here.execute(sql).fetchall()[0]  # to its end: what is registered beside an open result is lost

    @property
    def _here(self) -> Any:
        """This thread's connection to the one database."""
        if not hasattr(self._local, "cursor"):
            self._local.cursor, self._local.streams = self._db.cursor(), {}
            self._local.cursor.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        return self._local.cursor

    def _source(self, table: Table, columns: frozenset[str]) -> str:
        """What stands after FROM; counts the bytes."""
        with self._lock:
            if table in self._staged:
                return self._staged[table]
            self.bytes_read += table.bytes_of(columns)
        if table.files:
            serve(self._here, table.files[0].path)
        relation = module_of(table.format).relation(table) or self._streamed(table, columns)
        if not table.whole:
            return str(relation)
        name = self._fresh("staged")
        with _told(table):
            self._here.execute(f"CREATE TABLE {name} AS SELECT * FROM {relation}")
        with self._lock:
            self._staged[table] = name
        return name

    def _streamed(self, table: Table, columns: frozenset[str]) -> str:
        """The name under which the rows of these columns stream, on this thread's connection."""
        here, known = self._here, self._local.streams
        places = tuple(sorted({table.column(c).place for c in columns}))
        if (table, places) not in known:
            name = self._fresh("streamed")
            with _told(table):
                here.register(name, module_of(table.format).dataset(table, places))
            known[table, places] = name
        return str(known[table, places])

    def _fresh(self, word: str) -> str:
        with self._lock:
            self._numbered += 1
            return f"{word}{self._numbered}"


@contextmanager
def _told(*tables: Table) -> Iterator[None]:
    """What DuckDB says of files that do not hold, as :class:`Unreadable` with the name of the table."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        ours = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.OutOfMemoryException)
        if isinstance(error, ours):  # our own words, or the machine: not the file
            raise
        reason = str(error).splitlines()[0][:200]
        word = ailing(error, getattr(module_of(tables[0].format), "BROKEN", "unreadable"))
        raise Unreadable(f"{' or '.join(t.name for t in tables)}: {reason}", word) from error


def _class(value: str) -> str:
    """WORD, FRACTION, INTEGER or TOO_LONG of a value that stands as text; NULL of NULL."""
    whole = f"TRY_CAST({value} AS BIGINT)"
    return (
        f"CASE WHEN {value} = CAST({whole} AS VARCHAR)"
        f" THEN CASE WHEN {whole} BETWEEN {-MOST} AND {MOST} THEN {INTEGER} ELSE {TOO_LONG} END"
        f" WHEN regexp_full_match({value}, '{NUMBER}') THEN"
        f" CASE WHEN {value} = '-0' THEN {INTEGER} WHEN regexp_full_match({value}, '{LONG}') THEN {TOO_LONG}"
        f" ELSE {FRACTION} END WHEN {value} IS NOT NULL THEN {WORD} END"
    )


def _compared(column: Column, how: How) -> str:
    """The canonical value of a column (:mod:`nett.lake.comparing`) as an expression."""
    value, form = place_of(column), form_of(column, how)
    if form == "as it is":
        return value
    return _text(value, column.kind) if form == "text" else f"CAST({value} AS {form.upper()})"


def _text(value: str, kind: str) -> str:
    if kind == "decimal":
        shown = f"CAST({value} AS VARCHAR)"
        return f"CASE WHEN contains({shown}, '.') THEN rtrim(rtrim({shown}, '0'), '.') ELSE {shown} END"
    if kind == "float":
        whole = f"isfinite({value}) AND {value} = trunc({value}) AND abs({value}) < 1e16"
        return f"CASE WHEN {whole} THEN CAST(CAST({value} AS BIGINT) AS VARCHAR) ELSE CAST({value} AS VARCHAR) END"
    return value if kind == "text" else f"CAST({value} AS VARCHAR)"


def _numbered(expressions: Sequence[str]) -> str:
    return ", ".join(f"{e} AS k{i}" for i, e in enumerate(expressions))
