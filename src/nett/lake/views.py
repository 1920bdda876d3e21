"""A view that stands in for a table that was moved aside, where its rebuild can be said in one statement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from nett.lake.plan_file import Deletion
from nett.lake.rebuild import identifier, shown_sql
from nett.lake.table import Table

_BOTH = frozenset({"BIGINT", "INTEGER", "DOUBLE", "VARCHAR", "DATE", "BOOLEAN"})  # types that both know, or nearly


def view_sql(one: Deletion, tables: Mapping[str, Table], root: Path, dialect: Literal["duckdb", "spark"]) -> str | None:
    """``CREATE VIEW`` for DuckDB or Spark; None for selectors, and for Spark where a parent is not Parquet, is several
    files, or a value is cast to a type that it calls otherwise."""
    if one.rebuild.stored or (one.rebuild.kind == "union" and one.rebuild.order is not None):
        return None
    said = shown_sql(one.rebuild, one.own, tables, root, absolute=True)
    if dialect == "duckdb":
        return f"CREATE OR REPLACE VIEW {identifier(one.table.name)} AS {said};\n"
    if any(t.format != "parquet" or len(t.files) > 1 for t in tables.values()) or "`" in said:
        return None
    texts = [c.name for c in one.own] + [t.files[0].path for t in tables.values()]
    for condition in (c for part in one.rebuild.parts for c in part.where):
        if condition.type not in _BOTH:
            return None
        texts += [condition.column, condition.low or "", condition.high or "", *(condition.values or ())]
    if any(c in text for text in texts for c in "'`\"\\") or "_CAST(" in said:  # quoted otherwise there
        return None
    for table in tables.values():
        path = table.files[0].path
        said = said.replace(f"read_parquet(['{path}'])", f"parquet.`{path}`")
    said = said.replace('"', "`").replace(" AS VARCHAR)", " AS STRING)")
    return f"CREATE OR REPLACE TEMPORARY VIEW `{one.table.name.replace('`', '``')}` AS {said};\n"
