"""The formats of tables: one file each, with ``ENDINGS`` (or ``root_of``), ``describe`` and ``relation``.

``describe(name, files) -> Table`` reads as little as tells the columns. ``relation(table) -> str | None`` is what
stands after FROM in DuckDB's SQL: it names the top-level columns p0, p1, …, so that no name of a user's ever meets
SQL. Where it is None, ``dataset(table, places) -> Streamed`` gives the rows of these top-level columns by Arrow, as
often as it is asked. ``root_of(name) -> str | None``: the folder that is a table, told by a file that lies in it.
``VERSION`` is raised when a description of the same files changes; ``BROKEN`` names what ails a file that cannot be
read to its end.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from nett.lake.table import Column

MODULES = ("delta", "iceberg", "parquet", "delimited", "jsonl", "arrow")


def module_of(format: str) -> ModuleType:
    """The module of a format, imported now."""
    return importlib.import_module(f"nett.lake.formats.{format}")


def endings() -> dict[str, str]:
    """Ending of a file's name -> its format."""
    return {ending: name for name in MODULES for ending in getattr(module_of(name), "ENDINGS", ())}


def rooted() -> list[str]:
    """The formats whose tables are folders."""
    return [name for name in MODULES if hasattr(module_of(name), "root_of")]


class Unreadable(Exception):
    """A file that holds no table that can be read; what is wrong, for people. ``what``: a stable word for programs."""

    def __init__(self, why: str, what: str = "unreadable") -> None:
        super().__init__(why)
        self.what = what


def ailing(error: Exception, broken: str) -> str:
    """The word for what DuckDB says of a file: ``broken`` content, or no way to it."""
    import duckdb

    return "unreadable" if isinstance(error, duckdb.IOException) else broken


def only(path: str) -> str:
    """A path in SQL that DuckDB takes for this file and for no pattern of others."""
    return literal(re.sub(r"([\[*?])", r"[\1]", path))


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def place_of(column: Column) -> str:
    """A column as its relation names it in SQL, nested fields taken out: by number where names alone do not tell."""
    found = f"p{column.place}"
    for number in column.at:
        found = f"struct_extract_at({found}, {number})"
    for field in column.inner if not column.at else ():
        found = f"struct_extract({found}, {literal(field)})"
    return found
