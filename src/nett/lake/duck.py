"""The verbs of the room on DuckDB, in this process, out of core.

Tables whose format keeps no columns apart (text files) are read once, into a temporary database beside which memory
spills; all others are read where they lie, only the columns that are asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np

from nett.core.checkpoint.writer import byte_size
from nett.lake.alike import alike
from nett.lake.comparing import how_compared
from nett.lake.database import open_database
from nett.lake.duck_joins import copies_missing, distinct_missing, equal_rows, lacking_rows, rows_missing
from nett.lake.duck_words import INTEGER, TOO_LONG, WORD, class_of, compared, numbered, numbered_hashes
from nett.lake.formats import Unreadable, ailing, module_of, place_of
from nett.lake.place import serve
from nett.lake.protocol import Containment, Hashes, Key, Lacking, Semantics
from nett.lake.sampled import smallest
from nett.lake.table import Profile, Span, Table

ROOM = 1 / 4  # of the memory, that is taken by a parent that several joins read
WIDTH = 16  # bytes of a value in memory, about


@final
class Duck:
    """DuckDB as the engine of a lake. ``memory``: such as 512MB; ``text``: every comparison by text."""

    def __init__(self, *, memory: str | None = None, threads: int | None = None, text: bool = False) -> None:
        self._db, self._folder = open_database("staged.duckdb", memory=memory, threads=threads)
        self._db.execute("PRAGMA disable_checkpoint_on_shutdown")  # the file is thrown away
        self.lanes = threads or min(8, os.cpu_count() or 1)
        self._lock, self._local = threading.Lock(), threading.local()
        self._text = text
        self._room = ROOM * byte_size(str(self._one("SELECT current_setting('memory_limit')")[0]))
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
            f" FROM (SELECT i, v, {class_of('v')} AS c, TRY_CAST(v AS DOUBLE) AS d FROM ({long})) GROUP BY i"
        ).fetchall()
        rows, kinds, spans = 0, {}, {c.name: Span(nulls=0) for c in table.columns}
        for i, rows, there, least, most, low, high in found:
            name = table.columns[i].name
            spans[name] = Span(low, high, rows - there)
            if there and least > WORD and most < TOO_LONG:
                kinds[name] = "integer" if least == INTEGER else "float"
        return Profile(rows, kinds, spans)

    def sample(self, table: Table, keys: Sequence[Key], count: int) -> list[Hashes]:
        def below(some: Sequence[Key], most: int | None) -> list[Hashes]:
            if most is None and len(some) == 1:  # the database keeps the smallest only
                hashed = self._hashed(table, some)
                return self._apart(
                    f"SELECT DISTINCT 0 AS i, h0 AS h FROM ({hashed}) ORDER BY h LIMIT {int(count)}", 1, table
                )
            bounds = None if most is None else [most] * len(some)
            return self._apart(f"SELECT DISTINCT i, h FROM ({self._long(table, some, bounds)})", len(some), table)

        return smallest(keys, count, table.rows, below)

    def present(self, table: Table, wanted: Mapping[Key, Hashes]) -> dict[Key, Hashes]:
        import pyarrow as pa

        keys = [key for key, hashes in wanted.items() if hashes.size]
        found = {key: hashes[:0] for key, hashes in wanted.items()}
        if not keys:
            return found
        numbers = np.repeat(np.arange(len(keys), dtype=np.int32), [wanted[k].size for k in keys])
        here, sought = self._here, np.concatenate([wanted[k] for k in keys])
        here.register("wanted", pa.table({"i": numbers, "h": sought}))
        long = self._long(table, keys, [int(wanted[k].max()) for k in keys])
        told = self._apart(f"SELECT DISTINCT i, h FROM ({long}) SEMI JOIN wanted USING (i, h)", len(keys), table)
        here.unregister("wanted")
        return found | dict(zip(keys, told, strict=True))

    def missing(
        self, children: Sequence[Table], parent: Table, semantics: Semantics, *, count: bool = False
    ) -> list[Containment]:
        found: dict[Table, Containment] = {}
        groups = alike(children, parent, text=self._text)
        with self._at_hand(parent, list(groups)) as selected:
            for key, some in groups.items():
                with _told(*some, parent):
                    found |= zip(some, self._missing(key, some, selected(key), semantics, count=count), strict=True)
        return [found[child] for child in children]

    def _missing(
        self, key: Key, children: Sequence[Table], its: str, semantics: Semantics, *, count: bool
    ) -> list[Containment]:
        """Of children that are compared in one way, by one join; their exact numbers, where they are asked for, by
        another."""
        mine = [f"SELECT {i} AS i, {self._selected(c, key)}" for i, c in enumerate(children)]

        def ask(sql: str) -> dict[int, list[int]]:
            return {i: list(map(int, told)) for i, *told in self._here.execute(sql).fetchall()}

        lacking = ask(rows_missing(mine, its, len(key)))
        found = {i: Containment(int(c.rows or 0), *lacking.get(i, [0])) for i, c in enumerate(children)}
        inexact = [
            i for i, told in found.items() if (semantics == "bag" and not told.missing) or (count and told.missing)
        ]
        if inexact:
            exact = distinct_missing if semantics == "set" else copies_missing
            found |= {
                i: Containment(*told) for i, told in ask(exact([mine[i] for i in inexact], its, len(key))).items()
            }
        return [found[i] for i in range(len(children))]

    def lacking(self, child: Table, parent: Table, semantics: Semantics, most: int) -> list[Lacking]:
        mine, its, same = self._side_by_side(child, parent)
        asked = lacking_rows(mine, its, same, int(most), once=semantics == "set")
        with _told(child, parent):
            return [(tuple(row), int(n)) for *row, n in self._here.execute(asked).fetchall()]

    def _side_by_side(self, child: Table, parent: Table) -> tuple[str, str, str]:
        """(rows of the child as c, those of the parent as p, where they are equal), columns named k0, k1, …"""
        key = tuple((c.name, how_compared(c, parent.column(c.name), text=self._text)) for c in child.columns)
        return f"SELECT {self._selected(child, key)}", f"SELECT {self._selected(parent, key)}", equal_rows(len(key))

    def _selected(self, table: Table, key: Key) -> str:
        """What stands after SELECT for the canonical values of a key's columns: k0, k1, …"""
        values = numbered([compared(table.column(name), how) for name, how in key])
        return f"{values} FROM {self._source(table, frozenset(name for name, _ in key))}"

    @contextmanager
    def _at_hand(self, parent: Table, keys: Sequence[Key]) -> Iterator[Callable[[Key], str]]:
        """A parent's rows in the columns of each key. Where there are several, and memory for it, its values are held
        while this lasts, decoded and canonical."""
        columns = list(dict.fromkeys(column for key in keys for column in key))
        if len(keys) < 2 or (parent.rows or self._room) * len(columns) * WIDTH > self._room:
            yield lambda key: f"SELECT {self._selected(parent, key)}"
            return
        name = self._fresh("held")
        with _told(parent):
            self._here.execute(f"CREATE TEMP TABLE {name} AS SELECT {self._selected(parent, tuple(columns))}")
        at = {column: f"k{i}" for i, column in enumerate(columns)}
        try:
            yield lambda key: f"SELECT {numbered([at[column] for column in key])} FROM {name}"
        finally:
            self._here.execute(f"DROP TABLE {name}")

    def _long(self, table: Table, keys: Sequence[Key], bounds: Sequence[int] | None) -> str:
        """Hashes of all rows by the number of their key: i, h; with ``bounds`` only up to each key's own."""
        return numbered_hashes(self._hashed(table, keys), len(keys), bounds)

    def _hashed(self, table: Table, keys: Sequence[Key]) -> str:
        """The hash of each row in the columns of each key: h0, h1, …"""
        hashes = [f"hash({', '.join(compared(table.column(name), how) for name, how in key)})" for key in keys]
        columns = frozenset(name for key in keys for name, _ in key)
        return f"SELECT {numbered(hashes, 'h')} FROM {self._source(table, columns)}"

    def _apart(self, sql: str, count: int, table: Table) -> list[Hashes]:
        """The hashes h of each number i, sorted."""
        with _told(table):
            found = self._here.execute(sql).fetchnumpy()
        numbers, hashes = np.asarray(found["i"]), np.asarray(found["h"]).astype(np.uint64, copy=False)
        return [np.sort(hashes[numbers == i]) for i in range(count)]

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
