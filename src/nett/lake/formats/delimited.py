"""CSV, TSV and every dialect that DuckDB's sniffer finds: all values as the text that stands there.

What kind a column is (integers, floats, text) is told by all of its values, when they are read: a number is written
plainly, so that 007 and +5 stay text. Files are UTF-8, or UTF-16 with its mark; any other is read as Latin-1, which is
said.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import threading
from collections.abc import Sequence
from typing import Any

from nett.lake.formats import Unreadable, ailing, literal, only
from nett.lake.formats.parts import as_option, parts_of, union
from nett.lake.formats.text_kinds import partition_columns
from nett.lake.place import open_file, serve
from nett.lake.table import Column, File, Table

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
BROKEN = "ragged"
SMALL = "max_line_size=65536, buffer_size=262144"  # the sniffer's buffers are large, and there are many small files
_HEAD = 1 << 16
_NUMBERED = re.compile(r".*_\d+", re.DOTALL).fullmatch
_PLAIN = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?").fullmatch
_local = threading.local()
_WHAT = "Delimiter, Quote, Escape, SkipRows, HasHeader, Columns"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def describe(name: str, files: Sequence[File]) -> Table:
    """A table of one file or several, each with its own dialect."""
    if all(file.size == 0 for file in files):
        raise Unreadable("the file is empty")
    names, hows = [], []
    for file in files:
        if plain := _plainly(file.path):
            names.append([name or f"column{place}" for place, name in enumerate(plain[0])])
            hows.append((plain[1], '"', '"', 0, True, None))
            continue
        delimiter, quote, escape, skip, header, columns, encoding = _sniffed(file.path)
        how = (delimiter, quote, escape, skip, header, encoding)
        own, header = _names(file.path, [column["name"] for column in columns], how)
        if skip and not header:  # the sniffer's way with rows of several widths: all but the last few are a preamble
            raise Unreadable(f"its rows have no common width: {skip:,} lines do not fit those below them", BROKEN)
        names.append(own)
        hows.append((*how[:4], header, encoding))
    first, parts = parts_of(names, hows, files)
    keys = {key for key, _ in files[0].partition}
    places: dict[str, int] = {}
    for place, column in enumerate(names[first]):
        places.setdefault(column, place)
    made = [Column(c, "text", place, raw=True) for c, place in places.items() if c not in keys]
    made += partition_columns(files, len(names[first]))
    notes = [
        ("encoding", f"{f.path} is no UTF-8 and is read as Latin-1")
        for f, h in zip(files, hows, strict=True)
        if h[5] == "latin-1"
    ] + [
        ("skipped-lines", f"{f.path} is read from below its first {h[3]:,} lines, which are no rows of its table")
        for f, h in zip(files, hows, strict=True)
        if h[3]
    ]
    words = ("delim", "quote", "escape", "skip", "header", "encoding")
    options = {"parts": as_option(parts), **dict(zip(words, hows[first], strict=True))}
    return Table(name, "delimited", tuple(files), tuple(made), options=options, whole=True, notes=tuple(notes[:1]))


def _plainly(path: str) -> tuple[list[str], str] | None:
    """(first line, separator) of a small file that leaves nothing to sniff, which takes most of a scan of many such:
    UTF-8, the usual separator and quotes, rows of one width below a line of names."""
    head = _head(path)
    usual = _usual(path, head)
    if (
        usual is None
        or len(head) >= _HEAD
        or head[:1] in (b"#", b"\xef")
        or (b"'" in head and b'"' not in head)
        or b"\0" in head
    ):
        return None
    try:
        rows = list(csv.reader(io.StringIO(head.decode(), newline=""), delimiter=usual, strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    first = [name or None for name in rows[0]] if rows else []
    if len(rows) < 2 or {len(r) for r in rows} != {len(first)} or not _are_names(first):
        return None
    return rows[0], usual


def _names(path: str, sniffed: Sequence[str], how: Sequence[Any]) -> tuple[list[str], bool]:
    """The columns of a file, and whether its first line names them.

    Unlike the sniffer: one without a name is column0 at any width, not column00 in a table of ten, which would have no
    such column in common with a narrower one; a and A are two columns, not a and A_1; and a line of names above columns
    that are all text is seen.
    """
    header, width = bool(how[4]), len(sniffed)
    if header and not any(map(_NUMBERED, sniffed)):
        digits = len(str(width - 1))
        return [f"column{i}" if n == f"column{i:0{digits}}" else n for i, n in enumerate(sniffed)], True
    import duckdb

    source = _read(only(path), width, (*how[:4], False, how[5]))
    try:
        row = serve(quick_connection(), path).execute(f"SELECT * FROM {source} LIMIT 1").fetchone() or ()
    except duckdb.Error as error:
        raise Unreadable(
            f"its rows have no common dialect or width: {_reason(error)}", ailing(error, BROKEN)
        ) from error
    header = header or _are_names(row)
    return [(row[i] if header and i < len(row) else None) or f"column{i}" for i in range(width)], header


def _are_names(row: Sequence[str | None]) -> bool:
    """Whether a first row that the sniffer takes for values is of names: all unlike and no number among them; or none
    but the first is missing, as where R writes the names of rows."""
    if len(row) < 2 or len(set(row)) < len(row) or None in row[1:]:
        return False
    return row[0] is None or not any(_PLAIN(name) for name in row if name)


def relation(table: Table) -> str:
    """All columns as text; NULL is an empty field."""
    return union(table, _read)


def _read(paths: str, width: int, how: Any) -> str:
    delimiter, quote, escape, skip, header, encoding = how
    columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(width))
    marks = f"delim={literal(delimiter or '')}, quote={literal(quote or '')}, escape={literal(escape or '')}"
    more = f", encoding={literal(encoding)}" if encoding else ""
    return (
        f"read_csv({paths}, auto_detect=false, {marks}, header={header}, skip={skip}, hive_partitioning=false,"
        f" columns={{{columns}}}, max_line_size=16777216{more})"
    )


def _sniffed(path: str) -> list[Any]:
    """The usual dialect where the first line speaks for it, which is four times as fast; else whatever is found. The
    last of it is the encoding, None for UTF-8."""
    import duckdb

    head = _head(path)
    usual, quoted = _usual(path, head), "" if b"'" in head and b'"' not in head else ", quote='\"'"
    # Else a ragged file is sniffed as of one column, or with most of its rows taken for a preamble.
    given_delimiter = f", delim={literal(usual)}, skip=0" if usual else ""
    tries = dict.fromkeys((given_delimiter + quoted, given_delimiter))
    encodings = ["utf-16"] if head.startswith(_UTF16) else [None, "latin-1"]
    failed: Exception | None = None
    for encoding in encodings:
        spelled = f", encoding={literal(encoding)}" if encoding else ""
        for more in (f", sample_size=2048, {SMALL}", ""):
            for given in tries:
                asked = f"SELECT {_WHAT} FROM sniff_csv({only(path)}{given}{more}{spelled})"
                try:
                    found = serve(quick_connection(), path).execute(asked).fetchone()
                except duckdb.Error as error:
                    failed = failed or error
                else:
                    return [*_whole([None if value == "(empty)" else value for value in found or ()]), encoding]
        if failed is not None and "unicode" not in str(failed):
            break
    word = ailing(failed, BROKEN) if failed else BROKEN
    raise Unreadable(f"its rows have no common dialect or width: {_reason(failed)}", word)


def _whole(found: list[Any]) -> list[Any]:
    """A dialect in which a quote is doubled, where the sample held no quote in a quote."""
    return [found[0], found[1], found[2] or (found[1] and '"'), *found[3:]] if found[1] == '"' else found


def _head(path: str) -> bytes:
    """How the text of a file begins."""
    import pyarrow as pa

    packed = {"gz": "gzip", "zst": "zstd"}.get(path.lower().rpartition(".")[2])
    with open_file(path) as file:
        if packed is None:
            return bytes(file.read(_HEAD))
        try:
            with pa.CompressedInputStream(file, packed) as text:
                return bytes(text.read(_HEAD))
        except (pa.ArrowException, OSError) as error:
            raise Unreadable(f"it is not compressed as its name says: {_reason(error)}") from error


def _usual(path: str, head: bytes) -> str | None:
    """The separator that the first line and the ending agree on, if no other could be meant."""
    if not path.lower().endswith((".csv", ".tsv")):
        return None
    line = head.split(b"\n", 1)[0]
    wanted = b"\t" if path.lower().endswith(".tsv") else b","
    others = {b",", b"\t", b";", b"|"} - {wanted}
    return wanted.decode() if wanted in line and not any(o in line for o in others) and b"'" not in line else None


def quick_connection() -> Any:
    """A connection of this thread's own, for small questions."""
    if not hasattr(_local, "connection"):
        import duckdb

        _local.connection = duckdb.connect(config={"threads": 1})
    return _local.connection


def _reason(error: Exception | None) -> str:
    return str(error).splitlines()[0][:200]
