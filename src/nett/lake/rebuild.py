"""How a table is had from others, as data: what plans hold, and what is turned into SQL anew each time it is used.

    copy       the same bytes as one parent has
    whole      all rows of one parent
    distinct   its distinct rows
    predicate  its rows (or distinct rows) that fulfil conditions on its columns
    selector   its rows whose ordinals a stored bitmap holds
    union      rows of several parents, each whole or by a bitmap

Where the rows' order would be another than the parent's, an order file says the place of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nett.lake.exact import SIMPLE, NotExact, Own
from nett.lake.formats import literal, place_of
from nett.lake.table import Table

Kind = Literal["copy", "whole", "distinct", "predicate", "selector", "union"]


class Strict(BaseModel):
    """A record of a plan: frozen, and no key but those that are named."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Condition(Strict):
    """On one column of the parent: between ``low`` and ``high``, or one of ``values``, as texts that are cast to
    ``type``; ``nulls``: or NULL. With neither a range nor values: NULL, or (without ``nulls``) not NULL."""

    column: str
    type: Annotated[str, Field(pattern=f"^{SIMPLE.pattern}$")]
    low: str | None = None
    high: str | None = None
    values: tuple[str, ...] | None = None
    nulls: bool = False


class Stored(Strict):
    """A file that belongs to a plan, by its name relative to it."""

    path: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Part(Strict):
    """Rows of one parent. ``rows``: the bitmap of their ordinals; None: all that fulfil the conditions."""

    parent: str
    where: tuple[Condition, ...] = ()
    distinct: bool = False
    rows: Stored | None = None


class Rebuild(Strict):
    """Parts one after the other. ``order``: for each row of the child its place among theirs. ``ordered``: whether the
    rows come in the child's order."""

    kind: Kind
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    order: Stored | None = None
    ordered: bool = False

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.parent for p in self.parts))

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The files that it needs."""
        return tuple(p.rows for p in self.parts if p.rows is not None) + ((self.order,) if self.order else ())

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in self.stored)


def condition_sql(one: Condition, value: str) -> str:
    """A condition on the expression ``value``."""

    def cast(text: str) -> str:
        return f"CAST({literal(text)} AS {one.type})"

    if one.values is not None:
        said = [f"{value} = {cast(one.values[0])}" if len(one.values) == 1
                else f"{value} IN ({', '.join(map(cast, one.values))})"]  # fmt: skip
    elif one.low is not None and one.high is not None:
        same = one.low == one.high
        said = [f"{value} = {cast(one.low)}" if same else f"{value} BETWEEN {cast(one.low)} AND {cast(one.high)}"]
    else:
        return f"{value} IS {'' if one.nulls else 'NOT '}NULL"
    said += [f"{value} IS NULL"] if one.nulls else []
    return said[0] if len(said) == 1 else f"({' OR '.join(said)})"


def compared(column_type: str, parent: Table, name: str) -> str:
    """A column of the parent as conditions compare it: a text file's numbers as numbers."""
    column = parent.column(name)
    return (
        f"TRY_CAST({place_of(column)} AS {column_type})"
        if column.raw and column_type != "VARCHAR"
        else place_of(column)
    )


def filtered(where: Sequence[Condition], parent: Table) -> str:
    """All conditions on the parent's relation; NotExact where it lacks a column."""
    for one in where:
        if one.column not in parent.schema:
            raise NotExact(f"{parent.name!r} has no column {one.column!r}")
    return " AND ".join(condition_sql(c, compared(c.type, parent, c.column)) for c in where) or "true"


def rebuild_sql(
    rebuild: Rebuild,
    child: Sequence[Own],
    tables: Mapping[str, Table],
    source: Callable[[Table], str],
    projected: Callable[[Sequence[Own], Table], Sequence[str]],
    picks: str | None = None,
) -> str:
    """The query that gives the child's rows in columns c0, c1, …, in order.

    ``picks``: a table (i, part, o) of the ordinals ``o`` to take of each part, as the selector has them; ``i`` is the
    row's place in the child.
    """
    names = ", ".join(f"c{i}" for i in range(len(child)))
    if picks is not None:
        parts = []
        for number, part in enumerate(rebuild.parts):
            taken = _columns(projected(child, tables[part.parent]))
            parts.append(
                f"SELECT {taken}, k.i AS i FROM {source(tables[part.parent])} s JOIN {picks} k"
                f" ON k.part = {number} AND k.o = s.o"
            )
        return f"SELECT {names} FROM ({' UNION ALL '.join(parts)}) ORDER BY i"
    (part,) = rebuild.parts
    parent = tables[part.parent]
    taken, rows = _columns(projected(child, parent)), f"{source(parent)} s WHERE {filtered(part.where, parent)}"
    if part.distinct:
        return f"SELECT {names} FROM (SELECT {taken}, min(o) AS o FROM {rows} GROUP BY ALL) ORDER BY o"
    return f"SELECT {names} FROM (SELECT {taken}, o FROM {rows}) ORDER BY o"


def _columns(expressions: Sequence[str]) -> str:
    return ", ".join(f"{e} AS c{i}" for i, e in enumerate(expressions))


def identifier(name: str) -> str:
    """A name in SQL, quoted."""
    return '"' + name.replace('"', '""') + '"'


def shown_sql(
    rebuild: Rebuild, columns: Sequence[Own], tables: Mapping[str, Table], root: Path, *, absolute: bool = False
) -> str:
    """The rebuild for people, and for DuckDB started in the lake's folder, or anywhere with ``absolute``; rows of
    selectors are named by their file."""
    parts = []
    for part in rebuild.parts:
        parent = tables[part.parent]
        taken = ", ".join(f"{_named(parent, c)} AS {identifier(c.name)}" for c in columns) or "*"
        where = [_shown(c, parent) for c in part.where]
        where += [f"row ordinal IN ({part.rows.path})"] if part.rows is not None else []
        files = ", ".join(literal(f.path if absolute else os.path.relpath(f.path, root)) for f in parent.files)
        reader = "read_parquet" if parent.format == "parquet" else "read_csv"
        more = ", all_varchar=true" if parent.format == "delimited" else ""
        parts.append(
            f"SELECT {'DISTINCT ' if part.distinct else ''}{taken} FROM {reader}([{files}]{more})"
            + (f" WHERE {' AND '.join(where)}" if where else "")
        )
    order = f" -- in the order of {rebuild.order.path}" if rebuild.order is not None else ""
    return " UNION ALL ".join(parts) + order


def _shown(one: Condition, parent: Table) -> str:
    column = parent.column(one.column)
    name = ".".join(identifier(n) for n in (top_of(parent, one.column), *column.inner))
    cast = column.raw and one.type != "VARCHAR"
    return condition_sql(one, f"TRY_CAST({name} AS {one.type})" if cast else name)


def _named(parent: Table, own: Own) -> str:
    found = next((c for c in parent.columns if c.name == own.name), None)
    if found is None or not found.inner:
        name = identifier(own.name)
    else:
        name = ".".join(identifier(n) for n in (top_of(parent, own.name), *found.inner))
    raw = found is not None and found.raw
    return f"CAST({name} AS {own.type})" if raw != (own.type == "VARCHAR") and raw else name


def top_of(parent: Table, name: str) -> str:
    """The top-level column that a flattened one is in."""
    inner = parent.column(name).inner
    return name[: len(name) - sum(len(f) + 1 for f in inner)] if inner else name
