"""The formats of tables: one file each, with ``ENDINGS``, ``describe`` and ``relation``.

``describe(name, files) -> Table`` reads as little as tells the columns. ``relation(table) -> str`` is what stands
after FROM in DuckDB's SQL: it names the top-level columns p0, p1, …, so that no name of a user's ever meets SQL; or
``dataset(table)`` gives a pyarrow dataset that is asked instead.
"""

from __future__ import annotations

import importlib
from types import ModuleType

MODULES = ("parquet", "delimited")


def module_of(format: str) -> ModuleType:
    """The module of a format, imported now."""
    return importlib.import_module(f"nett.lake.formats.{format}")


def endings() -> dict[str, str]:
    """Ending of a file's name -> its format."""
    return {ending: name for name in MODULES for ending in module_of(name).ENDINGS}


class Unreadable(Exception):
    """A file that holds no table that can be read; what is wrong, for people. ``what``: a stable word for programs."""

    def __init__(self, why: str, what: str = "unreadable") -> None:
        super().__init__(why)
        self.what = what


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"
