"""CSV, TSV and every dialect that DuckDB's sniffer finds: all values as the text that stands there.

What kind a column is (integers, floats, text) is told by all of its values, when they are read: a number is written
plainly, so that 007 and +5 stay text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from nett.lake.formats import Unreadable, literal
from nett.lake.table import Column, File, Table

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
SMALL = "max_line_size=65536, buffer_size=262144"  # the sniffer's buffers are large, and there are many small files
_local = threading.local()
_WHAT = "Delimiter, Quote, Escape, SkipRows, HasHeader, Columns"


def describe(name: str, files: Sequence[File]) -> Table:
    """A table of one file or several of one dialect and header."""
    first = files[0]
    if first.size == 0:
        raise Unreadable("the file is empty")
    delimiter, quote, escape, skip, header, columns = _sniffed(first.path)
    named: dict[str, int] = {}
    for place, column in enumerate(columns):
        named.setdefault(column["name"], place)
    options = {
        "delim": delimiter, "quote": quote, "escape": escape, "skip": skip, "header": header, "width": len(columns),
    }  # fmt: skip
    made = tuple(Column(c, "text", place, raw=True) for c, place in named.items())
    return Table(name, "delimited", tuple(files), made, options=options)


def _sniffed(path: str) -> Any:
    """The usual dialect where the first line speaks for it, which is four times as fast; else whatever is found."""
    import duckdb

    usual = _usual(path)
    tries = [f", delim={literal(usual)}, quote='\"'", f", delim={literal(usual)}"] if usual else [""]
    for more in (f", sample_size=2048, {SMALL}", ""):
        for given in tries:
            try:
                found = _connection().execute(f"SELECT {_WHAT} FROM sniff_csv({literal(path)}{given}{more})").fetchone()
            except duckdb.Error as error:
                failed = error
            else:
                return [None if value == "(empty)" else value for value in found or ()]
    raise Unreadable(f"its rows have no common dialect or width: {_reason(failed)}", "ragged")


def _usual(path: str) -> str | None:
    """The separator that the first line and the ending agree on, if no other could be meant."""
    if not path.endswith((".csv", ".tsv")) or "://" in path:
        return None
    with open(path, "rb") as file:
        line = file.readline(1 << 16)
    wanted = b"\t" if path.endswith(".tsv") else b","
    others = {b",", b"\t", b";", b"|"} - {wanted}
    return wanted.decode() if wanted in line and not any(o in line for o in others) and b"'" not in line else None


def relation(table: Table) -> str:
    """All columns as text; NULL is an empty field."""
    o = table.options
    columns = ", ".join(f"'p{i}': 'VARCHAR'" for i in range(o["width"]))
    marks = ", ".join(f"{word}={literal(o[word] or '')}" for word in ("delim", "quote", "escape"))
    paths = ", ".join(literal(f.path) for f in table.files)
    return (
        f"read_csv([{paths}], auto_detect=false, {marks}, header={o['header']}, skip={o['skip']},"
        f" columns={{{columns}}}, max_line_size=16777216)"
    )


def _connection() -> Any:
    if not hasattr(_local, "connection"):
        import duckdb

        _local.connection = duckdb.connect(config={"threads": 1})
    return _local.connection


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
