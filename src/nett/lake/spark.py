"""The verbs of the room on Apache Spark: the same questions, and the joins stay on the cluster.

Only hashes of samples and counts come back to this process. Spark reads Parquet and delimited text; what it must find
at the same paths (a shared file system, or a bucket that its Hadoop knows) is the files of the tables.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np

from nett.core.errors import Refused, missing_extra
from nett.lake.alike import alike
from nett.lake.comparing import how_compared
from nett.lake.formats import Unreadable, text_kinds
from nett.lake.formats.parts import Part
from nett.lake.protocol import Containment, Hashes, Key, Lacking, Semantics
from nett.lake.sampled import smallest
from nett.lake.spark_words import compared, place
from nett.lake.table import Profile, Span, Table

NUMBER, WHOLE, LONG = (rf"^({p})\z" for p in (text_kinds.NUMBER, text_kinds.WHOLE, text_kinds.LONG))
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # a row of another width is an error whatever is asked for
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.autoBroadcastJoinThreshold": "-1",  # told by compressed bytes, a whole table would go into Java's memory
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
FORMATS = ("parquet", "delimited")
_SIGN = np.uint64(1 << 63)


@final
class Spark:
    """Spark as the engine of a lake. ``master``: such as ``local[2]`` or ``spark://host:7077``; a session that is there
    already is used as it is, and stays."""

    def __init__(self, *, master: str | None = None, memory: str | None = None, text: bool = False) -> None:
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise missing_extra("pyspark", "spark", "--engine spark") from error
        running = SparkSession.getActiveSession()
        local = (master or "local").startswith("local")
        builder: Any = SparkSession.builder.appName("nett lake")
        builder = builder.master(master or "local[*]") if running is None else builder
        builder = builder.config("spark.driver.memory", _jvm(memory)) if memory else builder
        for name, value in SETTINGS.items():
            if running is None or name.startswith("spark.sql."):
                builder = builder.config(name, value)
        if local and running is None:  # 200 tasks a join are for a cluster
            builder = builder.config("spark.sql.shuffle.partitions", str(2 * (os.cpu_count() or 1)))
            builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
        try:
            self._session = builder.getOrCreate()
        except Exception as error:  # of the gateway: no Java, no master
            raise Refused(f"Spark does not start: {_short(error)}", where=master or "local", hint=_JAVA) from error
        self._session.sparkContext.setLogLevel("OFF")
        self._ours = running is None
        self.lanes = 1 if local else 8  # a cluster has room for several jobs
        self._lock = threading.Lock()
        self._text = text
        self._frames: dict[Table, Any] = {}
        self.bytes_read = 0
        self.version = str(self._session.version)

    def close(self) -> None:
        for frame in self._frames.values():
            frame.unpersist()
        if self._ours:
            self._session.stop()

    def profile(self, table: Table) -> Profile:
        from pyspark.sql import functions as f

        asked: list[Any] = [f.count(f.lit(1))]
        for column in table.columns:
            value = place(column)
            asked.append(f.count(value))
            if column.raw:
                number = value.rlike(NUMBER)
                as_float = f.when(number, value.try_cast("double"))
                asked += [f.count_if(number), f.count_if(value.rlike(WHOLE)), f.count_if(value.rlike(LONG))]
                asked += [f.min(as_float), f.max(as_float)]
        with _told(table):
            row = self._source(table, table.schema).agg(*(a.alias(f"a{i}") for i, a in enumerate(asked))).first()
        told = iter(row)
        rows = next(told)
        kinds, spans = {}, {}
        for column in table.columns:
            there = next(told)
            spans[column.name] = Span(nulls=rows - there)
            if column.raw:
                numbers, whole, long, low, high = (next(told) for _ in range(5))
                if there and numbers == there and not long:
                    kinds[column.name] = "integer" if whole == there else "float"
                spans[column.name] = Span(low, high, rows - there)
        return Profile(rows, kinds, spans)

    def sample(self, table: Table, keys: Sequence[Key], count: int) -> list[Hashes]:
        from pyspark.sql import functions as f

        def below(some: Sequence[Key], most: int | None) -> list[Hashes]:
            with _told(table):
                if most is None and len(some) == 1:
                    return _apart(self._long(table, some).distinct().orderBy("h").limit(count).collect(), 1)
                long = self._long(table, some)
                bound = None if most is None else int(_signed(np.array([most], np.uint64))[0])
                return _apart(
                    (long if bound is None else long.where(f.col("h") <= bound)).distinct().collect(), len(some)
                )

        return smallest(keys, count, table.rows, below)

    def present(self, table: Table, wanted: Mapping[Key, Hashes]) -> dict[Key, Hashes]:
        from pyspark.sql import functions as f

        keys = [key for key, hashes in wanted.items() if hashes.size]
        found = {key: hashes[:0] for key, hashes in wanted.items()}
        if not keys:
            return found
        pairs = [(i, h) for i, key in enumerate(keys) for h in _signed(wanted[key]).tolist()]
        sought = self._session.createDataFrame(pairs, "i int, h long")
        with _told(table):
            long = self._long(table, keys).where(f.col("h") <= max(h for _, h in pairs))
            told = long.join(f.broadcast(sought), ["i", "h"], "left_semi").distinct().collect()
        return found | dict(zip(keys, _apart(told, len(keys)), strict=True))

    def missing(
        self, children: Sequence[Table], parent: Table, semantics: Semantics, *, count: bool = False
    ) -> list[Containment]:
        found: dict[Table, Containment] = {}
        for key, some in alike(children, parent, text=self._text).items():
            with _told(*some, parent):
                found |= zip(some, self._missing(key, some, parent, semantics, count=count), strict=True)
        return [found[child] for child in children]

    def _missing(
        self, key: Key, children: Sequence[Table], parent: Table, semantics: Semantics, *, count: bool
    ) -> list[Containment]:
        """Of children that are compared in one way: one job, in which the parent's rows are moved once."""
        from functools import reduce

        from pyspark.sql import functions as f

        mine = [self._selected(c, key, "c").withColumn("i", f.lit(i)) for i, c in enumerate(children)]
        c, p, same = (
            reduce(lambda one, other: one.unionAll(other), mine),
            self._selected(parent, key, "k"),
            _same(len(key)),
        )
        if semantics == "set":
            rows = c.distinct() if count else c
            lacking = {i: int(n) for i, n in rows.join(p, same, "left_anti").groupBy("i").count().collect()}
            total = {i: int(n) for i, n in rows.groupBy("i").count().collect()} if count else {}
            sizes = total if count else {i: int(c.rows or 0) for i, c in enumerate(children)}
            return [Containment(sizes.get(i, 0), lacking.get(i, 0)) for i in range(len(children))]
        c = c.groupBy(*c.columns).agg(f.count(f.lit(1)).alias("n"))
        p = p.groupBy(*p.columns).agg(f.count(f.lit(1)).alias("m"))
        short = f.greatest(f.col("n") - f.coalesce(f.col("m"), f.lit(0)), f.lit(0))
        told = c.join(p, same, "left").groupBy("i").agg(f.sum("n"), f.sum(short)).collect()
        each = {i: Containment(int(total), int(lacking)) for i, total, lacking in told}
        return [each.get(i, Containment(0, 0)) for i in range(len(children))]

    def lacking(self, child: Table, parent: Table, semantics: Semantics, most: int) -> list[Lacking]:
        from pyspark.sql import functions as f

        c, p, same = self._side_by_side(child, parent)
        names = list(c.columns)
        with _told(child, parent):
            if semantics == "set":
                found = c.join(p, same, "left_anti").distinct().withColumn("n", f.lit(1))
            else:
                c = c.groupBy(*c.columns).agg(f.count(f.lit(1)).alias("n"))
                p = p.groupBy(*p.columns).agg(f.count(f.lit(1)).alias("m"))
                short = f.col("n") - f.coalesce(f.col("m"), f.lit(0))
                found = c.join(p, same, "left").select(*names, short.alias("n")).where(f.col("n") > 0)
            rows = found.orderBy(*(f.col(n).asc_nulls_first() for n in names)).limit(most).collect()
        return [(tuple(row[:-1]), int(row[-1])) for row in rows]

    def _side_by_side(self, child: Table, parent: Table) -> Any:
        """(rows of the child, those of the parent, where they are equal)."""
        key = tuple((c.name, how_compared(c, parent.column(c.name), text=self._text)) for c in child.columns)
        return self._selected(child, key, "c"), self._selected(parent, key, "k"), _same(len(key))

    def _selected(self, table: Table, key: Key, letter: str) -> Any:
        """The canonical values of a key's columns."""
        values = [compared(table.column(name), how).alias(f"{letter}{i}") for i, (name, how) in enumerate(key)]
        return self._source(table, frozenset(name for name, _ in key)).select(*values)

    def _long(self, table: Table, keys: Sequence[Key]) -> Any:
        """Hashes of all rows by the number of their key: i, h. Spark's hash passes over NULL, so that each value goes in
        with whether it is one; floats lose their sign of zero."""
        from pyspark.sql import functions as f

        hashes = []
        for number, key in enumerate(keys):
            values = []
            for name, how in key:
                column = table.column(name)
                value = compared(column, how)
                is_float = how == "float" or (how == "value" and column.kind == "float")
                values += [value + f.lit(0.0) if is_float else value, value.isNull()]
            hashes.append(f.struct(f.lit(number).alias("i"), f.xxhash64(*values).alias("h")))
        rows = self._source(table, frozenset(name for key in keys for name, _ in key))
        return rows.select(f.inline(f.array(*hashes)))

    def _source(self, table: Table, columns: frozenset[str]) -> Any:
        with self._lock:
            return self._frame(table, columns)

    def _frame(self, table: Table, columns: frozenset[str]) -> Any:
        if table in self._frames:
            return self._frames[table]
        if table.format not in FORMATS:
            raise Unreadable(f"Spark reads {' and '.join(FORMATS)} here, not {table.format}; --engine duckdb reads it")
        self.bytes_read += table.bytes_of(columns)
        with _told(table):
            frame = self._read(table)
            if not table.chunk_bytes:
                self._frames[table] = frame = frame.persist()
        return frame

    def _read(self, table: Table) -> Any:
        """The parts of a table below one another, with what the folders of their files say."""
        from functools import reduce

        from pyspark.sql import functions as f

        frames = []
        for told in table.options["parts"]:
            part = Part(**told)
            apart: dict[tuple[tuple[str, str | None], ...], list[str]] = {}
            for number in part.files:
                file = table.files[number]
                apart.setdefault(file.partition, []).append(_hadoop(file.path))
            for partition, paths in apart.items():
                read = (
                    self._session.read.parquet(*paths) if table.format == "parquet" else self._text_files(paths, part)
                )
                read = read.toDF(*(f"q{i}" for i in range(part.width)))
                values = [f.lit(None) if at is None else f.col(f"q{at}") for at in part.takes]
                values += [f.lit(value).cast("string") for _, value in partition]
                frames.append(read.select(*(v.alias(f"p{i}") for i, v in enumerate(values))))
        return reduce(lambda one, other: one.unionAll(other), frames)

    def _text_files(self, paths: list[str], part: Part) -> Any:
        from pyspark.sql import functions as f

        delimiter, quote, escape, skip, header, encoding = part.how
        if skip:
            raise Unreadable("Spark cannot skip lines above a header; --engine duckdb can")
        names = [f"c{i}" for i in range(part.width)]
        read = self._session.read.csv(
            paths, schema=", ".join(f"{n} STRING" for n in names), sep=delimiter, quote=quote or "",
            escape=escape or quote or "", header=header, multiLine=True, mode="FAILFAST", enforceSchema=True,
            maxCharsPerColumn=-1, encoding=encoding or "UTF-8",
        )  # fmt: skip
        return read.select(*(f.nullif(f.col(n), f.lit("")).alias(n) for n in names))  # as an empty field is NULL


def _hadoop(path: str) -> str:
    """A path as Hadoop takes it, and not as a pattern."""
    return path if "://" in path else f"file://{_escaped(path)}"


_JAVA = "Spark needs Java 17 or newer, and JAVA_HOME or java on the PATH."


def _apart(rows: Sequence[Any], count: int) -> list[Hashes]:
    """Signed hashes by number, as unsigned ones in the same order, sorted."""
    numbers, hashes = np.array([r["i"] for r in rows], np.int64), np.array([r["h"] for r in rows], np.int64)
    return [np.sort(hashes[numbers == i].view(np.uint64) ^ _SIGN) for i in range(count)]


def _signed(hashes: Hashes) -> Any:
    """The inverse for hashes."""
    return (hashes ^ _SIGN).view(np.int64)


def _same(count: int) -> Any:
    """Where a row c0, c1, … and a row k0, k1, … are equal."""
    from functools import reduce
    from operator import and_

    from pyspark.sql import functions as f

    return reduce(and_, (f.col(f"c{i}").eqNullSafe(f.col(f"k{i}")) for i in range(count)))


def _jvm(memory: str) -> str:
    """512MB as Java has it."""
    from nett.core.checkpoint.writer import byte_size

    return f"{max(1, byte_size(memory) // 1024)}k"


def _escaped(path: str) -> str:
    """A path that Hadoop takes as it is, not as a pattern."""
    return "".join("\\" + c if c in "{}[]*?\\" else c for c in path)


@contextmanager
def _told(*tables: Table) -> Iterator[None]:
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        word = "ragged" if tables[0].columns[0].raw else "unreadable"
        raise Unreadable(f"{' or '.join(t.name for t in tables)}: {_short(error)}", word) from error


def _short(error: Exception) -> str:
    """What Spark's own error class says, the innermost where Java tells of several; else what Java's exception says, or
    the first line."""
    told = str(error).strip()
    of_class = re.findall(r"\[[A-Z][A-Z_.0-9]+\] [^\n]*", told)
    of_java = re.findall(r"^: ([\w.$]+: [^\n]*)", told, re.MULTILINE)
    return (of_class[-1:] or of_java or told.splitlines() or [type(error).__name__])[0][:200]
