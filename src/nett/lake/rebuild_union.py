"""A child that no single parent holds, from several together: greedily the one that has most of what is still wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nett.lake.exact import NotExact
from nett.lake.rebuild import Rebuild
from nett.lake.rebuild_find import Child, pair, stored, tried
from nett.lake.table import Table
from nett.lake.workbench import Workbench

MOST_PARENTS = 32  # that are looked at
SAMPLE = 64  # rows that must be somewhere before all are looked for
MOST_PARTS = 12  # that one table is put together from


def find_union(bench: Workbench, child: Child, parents: Sequence[Table], folder: Path, name: str) -> Rebuild:
    """Every row of the child from some parent that has it, each of the parents' rows once at most. NotExact where they
    do not cover it."""
    laid: dict[Table, str] = {}
    parts: list[tuple[Table, str, bool]] = []
    left = bench.make(f"SELECT o, h FROM {child.keys}")
    try:
        for parent in parents[:MOST_PARENTS]:
            try:
                laid[parent] = bench.parent_keys(parent, child.own)
            except NotExact:
                continue
        few = bench.make(f"SELECT o, h FROM {left} ORDER BY h LIMIT {SAMPLE}")
        try:
            for keys in laid.values():
                bench.db.execute(f"DELETE FROM {few} WHERE h IN (SELECT h FROM {keys})")
            if bench.one(f"SELECT count(*) FROM {few}")[0]:
                raise NotExact("some of its rows are in no other table with these very values")
        finally:
            bench.drop(few)
        gains = {p: _covered(bench, left, keys) for p, keys in laid.items()}
        while gains and max(gains.values()) and len(parts) < MOST_PARTS:
            best = max(gains, key=lambda p: (gains[p], -p.bytes, p.name))
            pairs = pair(bench, left, laid[best], again=False)
            rest = bench.make(f"SELECT o, h FROM {left} ANTI JOIN {pairs} ON o = co")
            rows = int(bench.one(f"SELECT count(*) FROM {laid[best]}")[0])
            parts.append((best, pairs, int(bench.one(f"SELECT count(*) FROM {pairs}")[0]) == rows))
            bench.drop(left)
            left = rest
            del gains[best]
            gains = {p: _covered(bench, left, laid[p]) for p in gains}
        missing = int(bench.one(f"SELECT count(*) FROM {left}")[0])
        if missing or len(parts) < 2:
            raise NotExact(f"{missing:,} of its rows are in no other table with these very values")
        first = {pairs: bench.one(f"SELECT min(co) FROM {pairs}")[0] for _, pairs, _ in parts}
        parts.sort(key=lambda part: first[part[1]])
        made = stored(bench, child, parts, folder, name, "union")
    finally:
        bench.drop(left, *(pairs for _, pairs, _ in parts))
    return tried(bench, child, made, {p.name: p for p, _, _ in parts}, folder)


def _covered(bench: Workbench, left: str, keys: str) -> int:
    return int(bench.one(f"SELECT count(*) FROM {left} SEMI JOIN {keys} k USING (h)")[0])
