"""JSON lines: one object a line, nested objects flattened with dots.

DuckDB tells the type of each value of all lines: whole numbers, floats, booleans, text; a key of several types is text,
a list is compared as a list of its type where it has one. Text is never taken for a date. The file is read once to
tell, and once more by the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from nett.lake.formats import Unreadable, ailing, literal, only
from nett.lake.formats.delimited import quick_connection
from nett.lake.formats.parts import as_option, parts_of, union
from nett.lake.formats.text_kinds import partition_columns
from nett.lake.place import serve
from nett.lake.table import Column, File, Table

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
BROKEN = "broken-line"
LONGEST = 1 << 26  # bytes of a line
_KINDS = {"BIGINT": "integer", "UBIGINT": "decimal", "HUGEINT": "decimal", "DOUBLE": "float", "BOOLEAN": "boolean"}
_TYPES = {"UBIGINT": "HUGEINT"}  # beside which a negative number may stand


def describe(name: str, files: Sequence[File]) -> Table:
    """A table by all of its lines."""
    import duckdb

    if all(file.size == 0 for file in files):
        raise Unreadable("the file is empty")
    paths = ", ".join(only(f.path) for f in files)
    asked = (
        f"SELECT json_group_structure(json), count(*) FILTER (json_type(json) <> 'OBJECT') FROM {_lines(f'[{paths}]')}"
    )
    try:
        found, others = serve(quick_connection(), files[0].path).execute(asked).fetchone()
    except duckdb.Error as error:
        raise Unreadable(str(error).splitlines()[0][:200], ailing(error, BROKEN)) from error
    if others:
        raise Unreadable(f"{others:,} of its lines hold no object", BROKEN)
    structure = json.loads(found) if found else {}
    keys = {key for key, _ in files[0].partition}
    leaves: dict[str, tuple[tuple[str, ...], Any]] = {}
    for path, type in _flat(structure if isinstance(structure, dict) else {}, ()):
        leaves.setdefault(".".join(path), (path, type))
    columns = [Column(n, _kind(type), i) for i, (n, (_, type)) in enumerate(leaves.items()) if n not in keys]
    columns += partition_columns(files, len(leaves))
    _, parts = parts_of([list(leaves)] * len(files), [None] * len(files), files)
    options = {"parts": as_option(parts), "leaves": [[_pointer(path), _cast(type)] for path, type in leaves.values()]}
    size = sum(f.size for f in files)
    return Table(name, "jsonl", tuple(files), tuple(columns), options=options, whole=True, described=size)


def relation(table: Table) -> str:
    """Each value by its place in the line."""
    shown = []
    for pointer, type in table.options["leaves"]:
        found = f"json_extract_string(json, {literal(pointer)})"
        shown.append(
            found
            if type == "VARCHAR"
            else f"CAST({'json_extract' if '[' in type else 'json_extract_string'}(json, {literal(pointer)}) AS {type})"
        )
    return union(table, lambda paths, width, how: f"(SELECT {', '.join(shown)}, file_index FROM {_lines(paths)})")


def _lines(paths: str) -> str:
    return f"read_json_objects({paths}, format='newline_delimited', hive_partitioning=false, maximum_object_size={LONGEST})"


def _flat(structure: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, type in structure.items():
        if isinstance(type, dict) and type:
            yield from _flat(type, (*path, key))
        else:
            yield (*path, key), type


def _cast(type: Any) -> str:
    """The type in SQL."""
    if isinstance(type, list):
        inner = _cast(type[0]) if type else "JSON"
        return f"{inner if not isinstance(type[0] if type else None, dict) else 'JSON'}[]"
    if not isinstance(type, str) or type in ("JSON", "NULL"):
        return "VARCHAR"
    return _TYPES.get(type, type)


def _kind(type: Any) -> str:
    return f"list of {_cast(type)}" if isinstance(type, list) else _KINDS.get(_cast(type), "text")


def _pointer(path: Sequence[str]) -> str:
    return "".join(f"/{key.replace('~', '~0').replace('/', '~1')}" for key in path)
