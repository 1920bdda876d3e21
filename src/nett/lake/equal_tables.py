"""Tables whose files hold the same bytes: by sizes, then by sha256 of everything."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from json import dumps

from nett.lake.table import Table

BLOCK = 1 << 20


def equal_tables(tables: Sequence[Table]) -> tuple[list[list[Table]], int]:
    """(groups of tables with equal bytes, singles too, in the order of their first; bytes that were read).

    A file that cannot be read makes its table a group of its own: whoever reads it next says so.
    """
    alike: dict[object, list[Table]] = {}
    for table in tables:
        told = (
            table.whole,
            dumps(table.options, sort_keys=True, default=str),
            *((f.size, f.partition) for f in table.files),
        )
        alike.setdefault((table.format, table.columns, told), []).append(table)
    groups: dict[object, list[Table]] = {}
    read = 0
    for key, some in alike.items():
        for table in some:
            mark: object = (key, table.name)
            if len(some) > 1:
                read += table.bytes
                mark = (key, _digest(table) or table.name)
            groups.setdefault(mark, []).append(table)
    place = {t: i for i, t in enumerate(tables)}
    return sorted(groups.values(), key=lambda group: place[group[0]]), read


def _digest(table: Table) -> str | None:
    seen = hashlib.sha256()
    try:
        for file in table.files:
            with open(file.path, "rb") as opened:
                while block := opened.read(BLOCK):
                    seen.update(block)
    except OSError:
        return None
    return seen.hexdigest()
