"""Which tables a lake holds: a file each, or a folder that is one table (hive partitions, the parts of one output)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import final
from urllib.parse import unquote

from nett.core.progress import report
from nett.lake.formats import Unreadable, endings, module_of, rooted
from nett.lake.place import HIDDEN, Place
from nett.lake.table import File, Table

PARTITION = re.compile(r"[^=/]+=[^/]*")
NOTHING = "__HIVE_DEFAULT_PARTITION__"  # as Hive writes NULL
PART = re.compile(r"part-\d+")  # as Hadoop and Spark name the files of one table


@final
@dataclass(frozen=True)
class Warning:
    """What could not be read, by a stable word and for people."""

    table: str
    what: str  # unreadable, ragged, no-columns, …
    why: str
    kept: bool = False  # whether the table is read all the same

    def as_json(self) -> dict[str, str]:
        return {"table": self.table, "warning": self.what, "why": self.why}


@final
@dataclass(frozen=True)
class Candidate:
    """Files that make one table, by its name and format."""

    name: str
    format: str
    files: tuple[File, ...]


def candidates(place: Place) -> list[Candidate]:
    """Every table of a lake by its files, in the order of their names. What lies in a folder that is itself a table
    (a log tells it, or metadata) belongs to that table."""
    known = sorted(endings().items(), key=lambda item: -len(item[0]))
    walked = list(place.files())
    roots = {root: format for name, _ in walked for root, format in [_root(name)] if root is not None}
    grouped: dict[tuple[str, str], list[File]] = {}
    for name, file in walked:
        above = next((folder for folder in _above(name) if folder in roots), None)
        if above is not None:
            grouped.setdefault((above or ".", roots[above]), []).append(file)
            continue
        lower = name.lower()
        format = next((f for ending, f in known if lower.endswith(ending)), None)
        if format is not None and not os.path.basename(name).startswith(HIDDEN):
            table = table_name(name)
            grouped.setdefault((table, format), []).append(replace(file, partition=partition_of(name, table)))
    both: dict[str, int] = {}
    for name, _ in grouped:
        both[name] = both.get(name, 0) + 1
    return [
        Candidate(name if both[name] == 1 else f"{name}:{format}", format, tuple(files))
        for (name, format), files in sorted(grouped.items())
    ]


def _root(name: str) -> tuple[str | None, str]:
    told = ((module_of(format).root_of(name), format) for format in rooted())
    return next(((root, format) for root, format in told if root is not None), (None, ""))


def _above(name: str) -> Iterator[str]:
    """The folders of a file, the nearest first; the lake itself is empty."""
    while name:
        name = name.rpartition("/")[0]
        yield name


def table_name(name: str) -> str:
    """The table that a file belongs to: the folder above its partitions (the lake itself is ``.``), or above parts of
    one output, or itself."""
    folders = name.split("/")
    for i, folder in enumerate(folders[:-1]):
        if PARTITION.fullmatch(folder):
            return "/".join(folders[:i]) or "."
    if len(folders) > 1 and PART.match(folders[-1]):
        return "/".join(folders[:-1])
    return name


def partition_of(name: str, table: str) -> tuple[tuple[str, str | None], ...]:
    """What the folders below a table say of a file: (column, value), of a column named twice the innermost."""
    below = name if table == "." else name[len(table) + 1 :]
    told = [folder.partition("=") for folder in below.split("/")[:-1] if PARTITION.fullmatch(folder)]
    return tuple({unquote(key): None if value == NOTHING else unquote(value) for key, _, value in told}.items())


def find_tables(
    place: Place, *, threads: int = 2, describe: Callable[[Candidate], Table] | None = None
) -> tuple[list[Table], list[Warning]]:
    """The tables of a lake, described, and what could not be. ``describe`` looks at one; by
    default its format does."""
    found = candidates(place)
    report.begin("looking at tables", len(found), "tables")
    with ThreadPoolExecutor(threads) as pool:
        told = list(pool.map(lambda one: _describe(one, describe), found))
    report.end()
    tables = [t for t in told if isinstance(t, Table)]
    lost = [Warning(name, "unreadable", why) for name, why in sorted(place.unlisted.items())]
    lost += [w for w in told if isinstance(w, Warning)]
    return tables, lost + [Warning(t.name, what, why, kept=True) for t in tables for what, why in t.notes]


def _describe(one: Candidate, describe: Callable[[Candidate], Table] | None) -> Table | Warning:
    try:
        table = describe(one) if describe else described(one.name, one.format, one.files)
        if not table.columns:
            return Warning(one.name, "no-columns", "it has no columns, so nothing can be said of its rows")
        return table
    except Unreadable as why:
        return Warning(one.name, why.what, str(why))
    except OSError as why:
        return Warning(one.name, "unreadable", f"cannot be read: {why.strerror or why}")
    finally:
        report.step(1)


def described(name: str, format: str, files: Sequence[File]) -> Table:
    """A table as its format tells it."""
    table: Table = module_of(format).describe(name, files)
    return table
