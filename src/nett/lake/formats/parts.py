"""Tables of several files: which columns each has, and what its folders say of its rows.

Files that have the same top-level columns are a part. One part has every column of the table; what another lacks is
NULL in its rows, as when columns were added over time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from nett.lake.formats import Unreadable, literal, only
from nett.lake.table import File, Table


@final
@dataclass(frozen=True)
class Part:
    """Files (by number) of ``width`` top-level columns, and at which of them each of the table's columns is."""

    files: list[int]
    width: int
    takes: list[int | None]
    how: Any = None  # of the format: a dialect


def parts_of(names: Sequence[Sequence[str]], hows: Sequence[Hashable], files: Sequence[File]) -> tuple[int, list[Part]]:
    """(the file that has every column, the parts) by the names of columns and whatever else tells files apart."""
    if len({tuple(name for name, _ in f.partition) for f in files}) > 1:
        raise Unreadable("its folders are not partitioned by the same columns", "mixed-partitions")
    first = max(range(len(names)), key=lambda i: len(names[i]))
    widest = names[first]
    grouped: dict[tuple[tuple[str, ...], Hashable], list[int]] = {}
    for number, (own, how) in enumerate(zip(names, hows, strict=True)):
        grouped.setdefault((tuple(own), how), []).append(number)
    parts = []
    for (own, how), some in grouped.items():
        if tuple(own) == tuple(widest):
            takes: list[int | None] = list(range(len(widest)))
        else:
            if lost := sorted(set(own) - set(widest)):
                where, other = files[some[0]].path, files[first].path
                raise Unreadable(f"{where} has other columns than {other}: {', '.join(lost[:3])}", "mixed-schema")
            if len(set(own)) < len(own) or len(set(widest)) < len(widest):
                raise Unreadable("its files have other columns, some of one name", "mixed-schema")
            takes = [own.index(n) if n in own else None for n in widest]
        parts.append(Part(some, len(own), takes, how))
    return first, parts


def as_option(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts as plain data, for ``Table.options``."""
    return [asdict(part) for part in parts]


def union(table: Table, read: Callable[[str, int, Any], str]) -> str:
    """What stands after FROM: ``read(list of files, width, how)`` of each part, then the columns of the partition."""
    parts = [Part(**part) for part in table.options["parts"]]
    keys = [name for name, _ in table.files[0].partition]
    if len(parts) == 1 and not keys:
        part = parts[0]
        return f"{read(_listed(table, part), part.width, part.how)} AS t({_names('p', part.width)})"
    selects = []
    for part in parts:
        shown = ["NULL" if at is None else f"q{at}" for at in part.takes]
        shown += [_of_file([dict(table.files[n].partition)[key] for n in part.files]) for key in keys]
        asked = ", ".join(f"{value} AS p{place}" for place, value in enumerate(shown))
        source = read(_listed(table, part), part.width, part.how)
        selects.append(f"SELECT {asked} FROM {source} AS t({_names('q', part.width)})")
    return f"({' UNION ALL '.join(selects)}) AS u"


def _of_file(values: Sequence[str | None]) -> str:
    """A value that every row of a file has, as text."""
    told = ["NULL" if v is None else literal(v) for v in values]
    if len(set(told)) == 1:
        return f"CAST({told[0]} AS VARCHAR)"
    return f"(CAST([{', '.join(told)}] AS VARCHAR[]))[CAST(file_index AS BIGINT) + 1]"


def _listed(table: Table, part: Part) -> str:
    return f"[{', '.join(only(table.files[n].path) for n in part.files)}]"


def _names(letter: str, width: int) -> str:
    return ", ".join(f"{letter}{i}" for i in range(width))
