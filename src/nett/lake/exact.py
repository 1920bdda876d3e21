"""Bags of rows by their exact values: what a rebuilt table is held against before anything is deleted.

Stricter than the scan's comparison: a value counts with the type that the file gives it, and in a text file as the
text that stands there. NaN is one value whatever its payload; -0.0 is not 0.0; an empty field of a text file is NULL.

A row's key is the md5, as an integer of 128 bits, of its values' lengths and texts. A bag's hash is the number of its
rows and the exact sum of their keys, so the order of rows is of no consequence. Two bags that differ have one hash
with a chance of about 2^-128, and among n rows two that differ have one key with a chance of n^2 / 2^129 (1.5e-15 for
a trillion). It guards against accidents, not against tables that someone made to collide; for that, files are pinned
by sha256. A bag in order also has the sums of two halves of the keys, each times the row's place.

While ways are looked for, rows are told by DuckDB's hash of 64 bits, which is many times as fast. Nothing rests on it:
what it finds is done once, and held against the bag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from nett.lake.formats import place_of
from nett.lake.table import Table

FLOATS = ("DOUBLE", "FLOAT")
SIMPLE = re.compile(r"[A-Z][A-Z0-9_ ]*(\(\d+(, ?\d+)?\))?")  # types that may be cast to, as DuckDB writes them


class NotExact(Exception):
    """Why a table cannot be rebuilt exactly, in words that follow its name."""


@final
@dataclass(frozen=True)
class Bag:
    """A bag of rows: how many, and the sum of their keys."""

    rows: int
    total: int

    def __str__(self) -> str:
        return f"{self.rows}:{self.total:x}"

    @classmethod
    def of(cls, text: str) -> Bag:
        """The inverse of ``str``; ValueError where it is none."""
        rows, _, total = text.partition(":")
        return cls(int(rows), int(total, 16))


@final
@dataclass(frozen=True)
class Own:
    """A column as the file has it, structs whole; ``type`` in DuckDB's words."""

    name: str
    place: int
    type: str


def own_columns(table: Table, types: Sequence[str]) -> list[Own]:
    """The top-level columns of a table. ``types``: what DuckDB reads them as. NotExact where reading may lose
    something, or two columns have one name."""
    names = top_names(table)
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise NotExact(f"it has two columns called {twice!r}")
    if len(names) != len(types):
        raise NotExact("its columns are not those that it was described with")
    return [Own(name, i, type) for i, (name, type) in enumerate(zip(names, types, strict=True))]


def top_names(table: Table) -> list[str]:
    """Names of the columns before structs are flattened."""
    if table.format != "parquet":
        return [c.name for c in sorted(table.columns, key=lambda c: c.place)]
    import pyarrow.parquet as pq

    schema = pq.read_schema(table.files[0].path)
    for field in schema:
        if (lost := _lost(field.type)) is not None:
            raise NotExact(f"its column {field.name!r} is of the type {lost}, which is not read exactly")
    return list(schema.names)


def _lost(type: Any) -> str | None:
    """The (inner) type that DuckDB does not hold without loss; None where there is none."""
    import pyarrow as pa

    if pa.types.is_decimal256(type) or (pa.types.is_timestamp(type) and type.unit == "ns" and type.tz is not None):
        return str(type)
    if isinstance(type, pa.BaseExtensionType) or pa.types.is_union(type):
        return str(type)
    if pa.types.is_dictionary(type):
        return _lost(type.value_type)
    return next((lost for i in range(type.num_fields) if (lost := _lost(type.field(i).type))), None)


def projection(child: Sequence[Own], parent: Table, tops: Sequence[Own], type_of: Any) -> list[str]:
    """Expressions over the parent's relation, one for each of the child's columns, with the child's types.

    ``tops``: the parent's own columns; ``type_of``: DuckDB's type of an expression over the parent. NotExact where
    there is none.
    """
    whole = {own.name: own for own in tops}
    made = []
    for own in child:
        if own.name in whole:
            source, type = f"p{whole[own.name].place}", whole[own.name].type
        elif own.name in parent.schema:
            source = place_of(parent.column(own.name))
            type = type_of(source)
        else:
            raise NotExact(f"its column {own.name!r} is not in {parent.name!r} as one column")
        if type != own.type:
            if not SIMPLE.fullmatch(own.type) or not SIMPLE.fullmatch(type):
                raise NotExact(f"its column {own.name!r} is {own.type}, in {parent.name!r} {type}")
            source = f"TRY_CAST({source} AS {own.type})"
        made.append(source)
    return made


def row_key(expressions: Sequence[str], types: Sequence[str]) -> str:
    """The key of a row as an expression: md5 over each value's length and text, NULL as a mark of its own."""
    parts = []
    for value, type in zip(expressions, types, strict=True):
        text = value if type == "VARCHAR" else f"hex({value})" if type == "BLOB" else f"CAST({value} AS VARCHAR)"
        parts.append(f"CASE WHEN ({value}) IS NULL THEN '-' ELSE concat(strlen({text}), ':', {text}) END")
    return f"md5_number(concat({', '.join(parts)}))"


TOTAL = (
    "count(*), coalesce(sum((h >> 64)::UBIGINT), 0), coalesce(sum((h & 18446744073709551615::UHUGEINT)::UBIGINT), 0)"
)


PLACED = ", ".join(
    f"coalesce(sum(CAST({half} AS HUGEINT) * ((o & 2147483647) + 1)), 0)"
    for half in ("h >> 80", "(h >> 32) & 281474976710655::UHUGEINT")
)


def row_hash(expressions: Sequence[str], types: Sequence[str]) -> str:
    """A hash of a row, the same for rows of equal keys but for accidents such as -0.0 in lists."""
    values = list(expressions)
    values += [f"CASE WHEN {v} = 0 THEN signbit({v}) END" for v, t in zip(values, types, strict=True) if t in FLOATS]
    return f"hash({', '.join(values)})"


def bag_of(row: Sequence[Any]) -> Bag:
    """From what :data:`TOTAL` gives."""
    return Bag(int(row[0]), (int(row[1]) << 64) + int(row[2]))
