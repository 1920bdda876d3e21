"""The verbs of the room on Apache Spark: the same questions, and the joins stay on the cluster.

Only hashes of samples and counts come back to this process. Spark reads Parquet and delimited text; what it must find
at the same paths (a shared file system, or a bucket that its Hadoop knows) is the files of the tables.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np

from nett.core.errors import Refused, missing_extra
from nett.lake.comparing import How, form_of, how_compared
from nett.lake.formats import Unreadable, text_kinds
from nett.lake.formats.parts import Part
from nett.lake.protocol import Containment, Hashes, Key, Lacking, Semantics
from nett.lake.table import Column, Profile, Span, Table

NUMBER, WHOLE, LONG = (rf"^({p})\z" for p in (text_kinds.NUMBER, text_kinds.WHOLE, text_kinds.LONG))
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # a row of another width is an error whatever is asked for
    "spark.sql.files.ignoreCorruptFiles": "false",
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
            value = _place(column)
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

    def sample(self, table: Table, key: Key, count: int) -> Hashes:
        with _told(table):
            return _numbers(self._hashed(table, key).distinct().orderBy("h").limit(count).collect())

    def present(self, table: Table, key: Key, wanted: Hashes) -> Hashes:
        from pyspark.sql import functions as f

        if not wanted.size:
            return wanted
        signed = (wanted ^ _SIGN).view(np.int64).tolist()
        sought = self._session.createDataFrame([(h,) for h in signed], "h long")
        with _told(table):
            there = self._hashed(table, key).where(f.col("h") <= signed[-1])
            return _numbers(there.join(f.broadcast(sought), "h", "left_semi").distinct().orderBy("h").collect())

    def missing(self, child: Table, parent: Table, semantics: Semantics, *, count: bool = False) -> Containment:
        from pyspark.sql import functions as f

        c, p, same = self._side_by_side(child, parent)
        with _told(child, parent):
            if semantics == "set":
                rows = c.distinct() if count else c
                lacking = rows.join(p, same, "left_anti").count()
                return Containment(rows.count() if count else int(child.rows or lacking), lacking)
            c = c.groupBy(*c.columns).agg(f.count(f.lit(1)).alias("n"))
            p = p.groupBy(*p.columns).agg(f.count(f.lit(1)).alias("m"))
            short = f.greatest(f.col("n") - f.coalesce(f.col("m"), f.lit(0)), f.lit(0))
            total, lacking = c.join(p, same, "left").agg(f.sum("n"), f.sum(short)).first()
            return Containment(int(total or 0), int(lacking or 0))

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
        from functools import reduce
        from operator import and_

        from pyspark.sql import functions as f

        inner, outer = [], []
        for i, mine in enumerate(child.columns):
            its = parent.column(mine.name)
            how = how_compared(mine, its, text=self._text)
            inner.append(_compared(mine, how).alias(f"c{i}"))
            outer.append(_compared(its, how).alias(f"k{i}"))
        c = self._source(child, child.schema).select(*inner)
        p = self._source(parent, child.schema).select(*outer)
        same = reduce(and_, (f.col(f"c{i}").eqNullSafe(f.col(f"k{i}")) for i in range(len(inner))))
        return c, p, same

    def _hashed(self, table: Table, key: Key) -> Any:
        """Spark's hash passes over NULL, so that each value goes in with whether it is one; floats lose their sign of
        zero."""
        from pyspark.sql import functions as f

        values = []
        for name, how in key:
            column = table.column(name)
            value = _compared(column, how)
            is_float = how == "float" or (how == "value" and column.kind == "float")
            values += [value + f.lit(0.0) if is_float else value, value.isNull()]
        return self._source(table, frozenset(name for name, _ in key)).select(f.xxhash64(*values).alias("h"))

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


def _numbers(rows: Sequence[Any]) -> Hashes:
    """Signed hashes, sorted, as unsigned ones in the same order."""
    return np.array([r[0] for r in rows], np.int64).view(np.uint64) ^ _SIGN


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
    """What Spark's own error class says, the innermost where Java tells of several; else the first line."""
    said = re.findall(r"\[[A-Z][A-Z_.0-9]+\] [^\n]*", str(error)) or str(error).strip().splitlines()
    return (said or [type(error).__name__])[-1 if said and said[-1].startswith("[") else 0][:200]


def _place(column: Column) -> Any:
    from pyspark.sql import functions as f

    found = f.col(f"p{column.place}")
    for field in column.inner:
        found = found.getField(field)
    return found


def _compared(column: Column, how: How) -> Any:
    """The canonical value of a column (:mod:`nett.lake.comparing`), equal to that of every other engine."""
    value, form = _place(column), form_of(column, how)
    if form == "as it is":
        return value
    return _text(value, column.kind) if form == "text" else value.cast({"timestamp": "timestamp_ntz"}.get(form, form))


def _text(value: Any, kind: str) -> Any:
    from pyspark.sql import functions as f

    shown = value.cast("string")
    if kind == "decimal":
        return f.when(shown.contains("."), f.rtrim(f.rtrim(shown, f.lit("0")), f.lit("."))).otherwise(shown)
    if kind == "float":
        whole = (f.abs(value) < 1e16) & (value == f.floor(value))
        return f.when(whole, value.cast("bigint").cast("string")).otherwise(_shortest(value.cast("double")))
    return f.concat(shown, f.lit("+00")) if kind == "instant" else shown


def _shortest(value: Any) -> Any:
    """The shortest decimal notation of a float as DuckDB and Python write it: plain from 1e-4 to 1e16, else 1.5e-07.
    Java has the same digits, but other exponents."""
    from pyspark.sql import functions as f

    java = value.cast("string")
    plain = f.rtrim(f.rtrim(value.cast("decimal(38,22)").cast("string"), f.lit("0")), f.lit("."))
    mantissa = f.regexp_replace(f.regexp_extract(java, "^([^E]+)E", 1), r"\.0$", "")
    exponent = f.regexp_extract(java, "E(-?)([0-9]+)$", 2)
    sign = f.when(java.contains("E-"), f.lit("e-")).otherwise(f.lit("e+"))
    scientific = f.concat(mantissa, sign, f.lpad(exponent, f.greatest(f.length(exponent), f.lit(2)), "0"))
    named = f.when(f.isnan(value), "nan").when(value == float("inf"), "inf").when(value == float("-inf"), "-inf")
    return named.when((f.abs(value) >= 1e-4) & (f.abs(value) < 1e16), plain).otherwise(scientific)
