"""The room's canonical values (:mod:`nett.lake.comparing`) as expressions of DuckDB's."""

from __future__ import annotations

from collections.abc import Sequence

from nett.lake.comparing import How, form_of
from nett.lake.formats import place_of
from nett.lake.formats.text_kinds import LONG, NUMBER
from nett.lake.table import Column

MOST = 10**18 - 1  # whole numbers up to this are compared as integers
WORD, FRACTION, INTEGER, TOO_LONG = range(4)  # what a value of a text file is; patterns, which are slow, come last


def class_of(value: str) -> str:
    """WORD, FRACTION, INTEGER or TOO_LONG of a value that stands as text; NULL of NULL."""
    whole = f"TRY_CAST({value} AS BIGINT)"
    return (
        f"CASE WHEN {value} = CAST({whole} AS VARCHAR)"
        f" THEN CASE WHEN {whole} BETWEEN {-MOST} AND {MOST} THEN {INTEGER} ELSE {TOO_LONG} END"
        f" WHEN regexp_full_match({value}, '{NUMBER}') THEN"
        f" CASE WHEN {value} = '-0' THEN {INTEGER} WHEN regexp_full_match({value}, '{LONG}') THEN {TOO_LONG}"
        f" ELSE {FRACTION} END WHEN {value} IS NOT NULL THEN {WORD} END"
    )


def compared(column: Column, how: How) -> str:
    """The canonical value of a column."""
    value, form = place_of(column), form_of(column, how)
    if form == "as it is":
        return value
    if form == "text":
        return _text(value, column.kind)
    if form == "moment":
        return f"CAST(CAST({value} AS TIMESTAMP) AS VARCHAR)"
    return f"CAST({value} AS {'TIMESTAMPTZ' if form == 'instant' else form.upper()})"


def _text(value: str, kind: str) -> str:
    if kind == "decimal":
        shown = f"CAST({value} AS VARCHAR)"
        return f"CASE WHEN contains({shown}, '.') THEN rtrim(rtrim({shown}, '0'), '.') ELSE {shown} END"
    if kind == "float":
        whole = f"isfinite({value}) AND {value} = trunc({value}) AND abs({value}) < 1e16"
        return f"CASE WHEN {whole} THEN CAST(CAST({value} AS BIGINT) AS VARCHAR) ELSE CAST({value} AS VARCHAR) END"
    return value if kind == "text" else f"CAST({value} AS VARCHAR)"


def numbered(expressions: Sequence[str], letter: str = "k") -> str:
    """The expressions as columns k0, k1, …"""
    return ", ".join(f"{e} AS {letter}{i}" for i, e in enumerate(expressions))


def numbered_hashes(hashed: str, count: int, bounds: Sequence[int] | None) -> str:
    """The columns h0, h1, … of a query below one another: i, h; with ``bounds`` only up to the one of each."""
    some = list(range(count))
    if bounds is None:
        return f"SELECT unnest([{', '.join(f'h{i}' for i in some)}]) AS h, unnest({some}) AS i FROM ({hashed})"
    there = [f"h{i} <= {most}" for i, most in enumerate(bounds)]
    pairs = ", ".join(f"CASE WHEN {there[i]} THEN h{i} END" for i in some)
    long = f"SELECT unnest([{pairs}]) AS h, unnest({some}) AS i FROM ({hashed}) WHERE {' OR '.join(there)}"
    return f"SELECT i, h FROM ({long}) WHERE h IS NOT NULL"
