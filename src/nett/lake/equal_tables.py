"""Tables whose files hold the same bytes: by sizes, then by sha256 of everything, or by etags that are hashes themselves.

An object store's etag is the MD5 of an object that was put in one piece: equal ones mean equal bytes. Unequal ones may
not mean unequal bytes (encryption), which costs a comparison of rows and no edge.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from json import dumps

from nett.lake.place import open_file
from nett.lake.table import Table

BLOCK = 1 << 20
ETAG = re.compile(r"etag:[0-9a-f]{32}")  # of many pieces it ends with their number


def equal_tables(
    tables: Sequence[Table], digest: Callable[[Table], tuple[str | None, int]] | None = None
) -> tuple[list[list[Table]], int]:
    """(groups of tables with equal bytes, singles too, in the order of their first; bytes that were read).

    A file that cannot be read makes its table a group of its own: whoever reads it next says so.
    """
    alike: dict[object, list[Table]] = {}
    for table in tables:
        told = dumps([table.whole, table.options, [(f.size, f.partition) for f in table.files]], default=str)
        alike.setdefault((table.format, table.columns, told), []).append(table)
    groups: dict[object, list[Table]] = {}
    read = 0
    for key, some in alike.items():
        tagged = all(ETAG.fullmatch(f.mark) for table in some for f in table.files)
        for table in some:
            mark: object = (key, table.name)
            if len(some) > 1 and tagged:
                mark = (key, tuple(f.mark for f in table.files))
            elif len(some) > 1:
                seen, size = (digest or digest_of)(table)
                read += size
                mark = (key, seen or table.name)
            groups.setdefault(mark, []).append(table)
    place = {t: i for i, t in enumerate(tables)}
    return sorted(groups.values(), key=lambda group: place[group[0]]), read


def digest_of(table: Table) -> tuple[str | None, int]:
    """(sha256 of all bytes, bytes read); None where they cannot be read."""
    seen = hashlib.sha256()
    try:
        for file in table.files:
            with open_file(file.path) as opened:
                while block := opened.read(BLOCK):
                    seen.update(block)
    except OSError:
        return None, table.bytes
    return seen.hexdigest(), table.bytes
