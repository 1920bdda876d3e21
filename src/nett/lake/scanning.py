"""A scan from a path to what is said of it: tables, edges between all of them, stages, warnings."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

from nett.core.checkpoint.writer import byte_size
from nett.core.staging import put_file
from nett.lake.cache import cache_of
from nett.lake.discovery import find_tables
from nett.lake.place import Place
from nett.lake.plain import plain_value
from nett.lake.protocol import Containment, Engine, Lacking, Semantics
from nett.lake.remembering import Remembering, describing, digesting
from nett.lake.stages import Found, Sampling, Search
from nett.lake.table import Table

VERSION = 1


def scan_lake(
    path: str,
    *,
    engine: str = "duckdb",
    semantics: Semantics = "set",
    text: bool = False,
    verify: bool = True,
    least: float = 1.0,
    sampling: Sampling | None = None,
    ignore: str | None = None,
    memory: str | None = None,
    threads: int | None = None,
    master: str | None = None,
    cache: Path | None = None,
    no_cache: bool = False,
) -> dict[str, Any]:
    """The findings of one scan, as JSON has them."""
    if memory is not None:
        byte_size(memory)  # before any table is looked at
    place = Place(path)
    kept = None if no_cache else cache_of(place.root, cache)
    try:
        tables, warnings = find_tables(
            place, threads=threads or min(8, os.cpu_count() or 1), describe=describing(kept) if kept else None
        )
        for table in tables:
            _leave_out(table, (ignore or "").split(","))
        tables = [t for t in tables if t.columns]
        verbs = open_engine(engine, memory=memory, threads=threads, text=text, master=master)
        if kept is not None:
            verbs = Remembering(verbs, kept, text=text)
        try:
            search = Search(
                verbs, semantics=semantics, sampling=sampling, verify=verify, least=least, text=text,
                digest=digesting(kept) if kept else None,
            )  # fmt: skip
            found = search.run(tables)
        finally:
            verbs.close()
    except BaseException:
        if kept is not None:
            kept.close(complete=False)
        raise
    if kept is not None:
        kept.close()
    found.warnings = warnings + found.warnings
    return as_json(place, tables, found, semantics)


def open_engine(name: str, *, memory: str | None, threads: int | None, text: bool, master: str | None = None) -> Engine:
    """An engine by name."""
    if name == "spark":
        from nett.lake.spark import Spark

        return Spark(master=master, memory=memory, text=text)
    from nett.lake.duck import Duck

    return Duck(memory=memory, threads=threads, text=text)


def _leave_out(table: Table, patterns: list[str]) -> None:
    table.columns = tuple(c for c in table.columns if not any(fnmatch.fnmatchcase(c.name, p) for p in patterns if p))


def as_json(place: Place, tables: list[Table], found: Found, semantics: Semantics) -> dict[str, Any]:
    """What ``--json`` writes."""
    broken = {w.table for w in found.warnings if not w.kept}
    of = {group[0]: group for group in found.groups}
    edges = [
        (child, parent, containment, found.lacking.get((one, other), []))
        for (one, other), containment in found.edges.items()
        for child in of[one]
        for parent in of[other]
        if not {child.name, parent.name} & broken
    ]
    edges += [
        (a, b, Containment(a.rows or 0, 0), []) for group in found.groups for a in group for b in group if a is not b
    ]
    equal = {t for group in found.groups if len(group) > 1 for t in group}
    return {
        "version": VERSION,
        "path": place.root,
        "semantics": semantics,
        "tables": [
            {
                "name": t.name,
                "path": t.name,
                "rows": t.rows,
                "columns": len(t.columns),
                "bytes": t.bytes,
                "format": t.format,
            }
            for t in tables
            if t.name not in broken
        ],
        "edges": sorted(
            (
                {
                    "child": c.name,
                    "parent": p.name,
                    "containment": n.share,
                    "semantics": semantics,
                    "verified": found.verified
                    or (c in equal and p in equal and [f.size for f in c.files] == [f.size for f in p.files]),
                }
                | _differing(c, n, rows)
                for c, p, n, rows in edges
            ),
            key=lambda e: (e["child"], e["parent"]),
        ),
        "stages": [
            {"name": s.name, "pairs": s.pairs, "bytes_read": s.bytes_read, "seconds": round(s.seconds, 3)}
            for s in found.stages
        ],
        "bytes": sum(t.bytes for t in tables),
        "warnings": [w.as_json() for w in found.warnings],
    }


def _differing(child: Table, found: Containment, rows: list[Lacking]) -> dict[str, Any]:
    """Of an edge below 1: how many rows differ, and some of them; ``times`` where one is lacking more than once."""
    if not found.missing:
        return {}
    names = [c.name for c in child.columns]
    told = [
        {"row": dict(zip(names, map(plain_value, row), strict=True))} | ({"times": n} if n > 1 else {})
        for row, n in rows
    ]
    return {"missing": found.missing, "lacking": told}


def write_json(path: Path, told: dict[str, Any]) -> None:
    """Whole or not at all."""
    put_file(Path(path), (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
