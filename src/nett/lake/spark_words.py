"""The room's canonical values (:mod:`nett.lake.comparing`) as columns of Spark's."""

from __future__ import annotations

from typing import Any

from nett.lake.comparing import How, form_of
from nett.lake.table import Column


def place(column: Column) -> Any:
    from pyspark.sql import functions as f

    found = f.col(f"p{column.place}")
    for field in column.inner:
        found = found.getField(field)
    return found


def compared(column: Column, how: How) -> Any:
    """The canonical value of a column (:mod:`nett.lake.comparing`), equal to that of every other engine."""
    value, form = place(column), form_of(column, how)
    if form in ("as it is", "instant", "time"):  # Spark has one unit, and no nanoseconds
        return value
    if form == "text":
        return _text(value, column.kind)
    return value.cast({"timestamp": "timestamp_ntz", "moment": "timestamp_ntz"}.get(form, form))


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
