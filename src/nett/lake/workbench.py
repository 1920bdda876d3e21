"""Where tables are rebuilt: DuckDB out of core, every row with its ordinal in the order of the table's files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

from nett.lake.database import open_database
from nett.lake.exact import PLACED, TOTAL, Bag, NotExact, Own, bag_of, own_columns, projection, row_hash, row_key
from nett.lake.formats import module_of
from nett.lake.table import Table

MOST_KEPT = 33  # tables of keys; they spill. A union looks at one fewer together
FORMATS = ("parquet", "delimited")  # that tables are rebuilt from, and as


@final
class Workbench:
    """One database in memory, which spills into a temporary folder. Row ordinals count from 0: in Parquet by the
    files' own row numbers, file after file; in text files by the order of lines."""

    def __init__(self, *, memory: str | None = None, threads: int | None = None) -> None:
        self.db, self.folder = open_database(memory=memory, threads=threads)
        self.db.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = true; SET enable_progress_bar = false")
        self._sources: dict[Table, str] = {}
        self._owns: dict[Table, list[Own]] = {}
        self._kept: dict[tuple[Table, tuple[tuple[str, str], ...]], str] = {}
        self._numbered = 0

    def close(self) -> None:
        self.db.close()
        self.folder.cleanup()

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def one(self, sql: str) -> Any:
        return self.db.execute(sql).fetchall()[0]

    def batches(self, sql: str, rows: int = 1 << 16) -> Iterator[Any]:
        """The rows of a query as Arrow record batches, a few at a time."""
        relation = self.db.sql(sql)
        reader = (
            relation.to_arrow_reader(rows)
            if hasattr(relation, "to_arrow_reader")
            else relation.fetch_arrow_reader(rows)
        )
        with contextlib.closing(reader):
            yield from reader

    def named(self) -> str:
        """A name for a table of this database that nothing has."""
        self._numbered += 1
        return f"w{self._numbered}"

    def make(self, sql: str) -> str:
        """A query's rows as a table of this database; its name."""
        name = self.named()
        self.db.execute(f"CREATE TEMP TABLE {name} AS {sql}")
        return name

    def drop(self, *names: str) -> None:
        for name in names:
            self.db.execute(f"DROP TABLE IF EXISTS {name}")

    def source(self, table: Table) -> str:
        """What stands after FROM: columns p0, p1, … and the ordinal ``o``. NotExact where its format is not one that
        this can be done for, or its files do not hold."""
        if table not in self._sources:
            if table.format not in FORMATS:
                raise NotExact(f"tables of the format {table.format} are not rebuilt yet")
            if table.files[0].partition or len(table.options["parts"]) > 1 or table.notes:
                raise NotExact("tables in partitions, of parts that differ or of unknown encoding are not rebuilt yet")
            with reading(table):
                self._sources[table] = self._made(table)
        return self._sources[table]

    def _made(self, table: Table) -> str:
        import duckdb

        relation: str = module_of(table.format).relation(table)
        if relation.startswith("read_parquet("):
            starts, at = [], 0
            for file in table.files:
                starts.append(at)
                at += _rows(file.path)
            start = f"list_extract([{', '.join(map(str, starts))}], t.file_index + 1)" if len(starts) > 1 else "0"
            source = f"(SELECT t.*, CAST({start} + t.file_row_number AS BIGINT) AS o FROM {relation})"
            try:
                self.db.execute(f"SELECT o FROM {source} LIMIT 0")
            except duckdb.BinderException:  # a DuckDB without these columns
                pass
            else:
                return source
        return f"(SELECT *, rowid AS o FROM {self.make(f'SELECT * FROM {relation}')})"

    def forget(self, table: Table) -> None:
        """Read the table anew when it is asked for next."""
        self._sources.pop(table, None)
        self._owns.pop(table, None)

    def own(self, table: Table) -> list[Own]:
        """The table's columns with the types that its files give them."""
        if table not in self._owns:
            source = self.source(table)
            with reading(table):
                told = self.db.execute(f"DESCRIBE SELECT * EXCLUDE (o) FROM {source}").fetchall()
                self._owns[table] = own_columns(table, [str(row[1]) for row in told])
        return self._owns[table]

    def projected(self, child: Sequence[Own], parent: Table) -> list[str]:
        """Expressions over the parent that give the child's columns."""
        source = self.source(parent)

        def type_of(expression: str) -> str:
            return str(self.db.execute(f"DESCRIBE SELECT {expression} AS v FROM {source}").fetchall()[0][1])

        return projection(child, parent, self.own(parent), type_of)

    def parent_keys(self, table: Table, child: Sequence[Own]) -> str:
        """As :meth:`keys`, of which those asked for last stay; not to be dropped."""
        asked = (table, tuple((own.name, own.type) for own in child))
        found = self._kept.pop(asked, None) or self.keys(table, child)
        self._kept[asked] = found
        while len(self._kept) > MOST_KEPT:
            self.drop(self._kept.pop(next(iter(self._kept))))
        return found

    def keys(self, table: Table, child: Sequence[Own]) -> str:
        """A table (o, h) of the ordinals and hashes of all rows in the child's columns; its name."""
        expressions = self.projected(child, table)
        with reading(table):
            return self.make(
                f"SELECT o, {row_hash(expressions, [own.type for own in child])} AS h FROM {self.source(table)}"
            )

    def tally(self, keys: str) -> tuple[int, int]:
        """(rows, sum of their hashes) of a table that has a column h: of two bags with one tally, one is looked at."""
        rows, total = self.one(f"SELECT count(*), coalesce(sum(CAST(h AS HUGEINT)), 0) FROM {keys}")
        return int(rows), int(total)

    def bag(self, rows: str, values: Sequence[str], types: Sequence[str]) -> tuple[Bag, tuple[int, int]]:
        """(the exact bag of a relation, what its order adds): of the values, o is the place of a row."""
        key = row_key(values, types)
        *total, one, other = self.one(f"SELECT {TOTAL}, {PLACED} FROM (SELECT o, {key} AS h FROM {rows})")
        return bag_of(total), (int(one), int(other))


@contextlib.contextmanager
def reading(*tables: Table) -> Iterator[None]:
    """What DuckDB and Arrow say of files that do not hold, as :class:`NotExact`."""
    import duckdb
    import pyarrow as pa

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if isinstance(error, duckdb.OutOfMemoryException | duckdb.ParserException | duckdb.BinderException):
            raise
        reason = str(error).splitlines()[0][:200]
        raise NotExact(f"{' or '.join(t.name for t in tables)} cannot be read: {reason}") from error


def _rows(path: str) -> int:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        return int(opened.metadata.num_rows)
