"""On a stated share of the generated lake: what a plan costs, and Spark in local mode beside DuckDB."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Spent, spend

from nett.core.bench import Figure, Series

PLANNED, BY_SPARK = 8, 2  # families of 19 tables
Say = Callable[[str], None]


def planned(lake: Path, work: Path, say: Say, pico: bool) -> list[Figure]:
    """The cost of keeping all, of the greedy choice and of the ILP's, and the bound of its linear relaxation."""
    share, note = _share(lake, work / "generated-planned", 1 if pico else PLANNED)
    scan = _spent("scan", share, work, "")
    spent = _spent("plan", share, work, "--solver ilp --out generated-plan.json")
    plan = json.loads((work / "generated-plan.json").read_text())
    cost, ways = plan["cost"], [d["rebuild"]["kind"] for d in plan["delete"]]
    kinds = ", ".join(f"{ways.count(k)} {k}" for k in sorted(set(ways)))
    note += (
        f"; keeping all {cost['keep_all']:.6f}, greedy {cost['greedy']:.6f}, ILP {cost['plan']:.6f}, at least"
        f" {cost['bound']:.6f}; {len(ways)} tables go ({kinds}), each rebuilt once and compared"
    )
    say(f"plan: {spent.wall:.1f} s, {spent.cpu:.1f} s of CPU, {spent.anonymous:.0f} MB; {note}")
    words = "nett lake plan generated-planned --solver ilp"
    ilp, greedy, everything, bound = (
        Series(name, "money", [float(f"{cost[key]:.9g}")], [], words)  # sums in two orders differ in the last digit
        for name, key in (("ILP", "plan"), ("greedy", "greedy"), ("keeping all", "keep_all"), ("the bound", "bound"))
    )
    return [
        Figure("cost of the plan over keeping all", ilp, everything, bar=1.0, note=note),
        Figure("cost of the plan over the greedy choice", ilp, greedy, bar=1.0),
        Figure("cost of the plan over its bound", ilp, bound, bar=1.05),
        Figure("CPU time of planning over scanning", _series("plan", "s", spent.cpu, words),
               _series("scan", "s", scan.cpu, "nett lake scan generated-planned"),
               note="it scans too; the rest is rebuilding and hashing every table that goes, exactly"),
        Figure("wall time of planning", _series("nett", "s", spent.wall, words)),
        Figure("peak anonymous memory of planning", _series("nett", "MB", spent.anonymous, words), bar=1000.0),
    ]  # fmt: skip


def by_spark(lake: Path, work: Path, say: Say, pico: bool) -> list[Figure]:
    """The same scan by both engines; of Spark the memory and CPU of Java too."""
    share, note = _share(lake, work / "generated-spark", 1 if pico else BY_SPARK)
    told, spent = {}, {}
    for engine in ("duckdb", "spark"):
        more = " --master local[2]" if engine == "spark" else ""
        spent[engine] = _spent(
            "scan", share, work, f"--engine {engine}{more} --json generated-{engine}.json", below=True
        )
        told[engine] = json.loads((work / f"generated-{engine}.json").read_text())
        say(f"{engine}: {spent[engine].wall:.1f} s, {spent[engine].cpu:.1f} s of CPU, {spent[engine].anonymous:.0f} MB")
    edges = [{(e["child"], e["parent"]) for e in told[engine]["edges"]} for engine in told]
    words = {e: f"nett lake scan generated-spark --engine {e}" for e in told}
    series = {(e, what): _series(e, unit, value, words[e]) for e, s in spent.items()
              for what, unit, value in (("wall", "s", s.wall), ("cpu", "s", s.cpu), ("memory", "MB", s.anonymous))}  # fmt: skip
    return [
        Figure("edges that Spark finds and DuckDB does not, or the other way round",
               _series("spark", "edges", float(len(edges[0] ^ edges[1])), words["spark"]), bar=0.0,
               note=f"{note}; {len(edges[0]):,} edges"),
        *(Figure(f"Spark over DuckDB, {said}", series["spark", what], series["duckdb", what])
          for what, said in (("wall", "wall time, the start of Java counted"), ("cpu", "CPU time"),
                             ("memory", "peak anonymous memory, Java's too"))),
    ]  # fmt: skip


def _spent(verb: str, share: Path, work: Path, more: str, *, below: bool = False) -> Spent:
    return spend(
        shlex.split(f"nett lake {verb} {share.name} --quiet --no-cache {more}"), work, memory=True, below=below
    )


def _series(name: str, unit: str, value: float, command: str) -> Series:
    return Series(name, unit, [value], [os.getloadavg()[0]], command)


def _share(lake: Path, folder: Path, families: int) -> tuple[Path, str]:
    """(a folder with links to the tables of the first families, which share it is)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = sorted(lake.glob("*.parquet"))
    some = [
        f for f in files if f.name.partition("-")[0] in sorted({f.name.partition("-")[0] for f in files})[:families]
    ]
    for file in some:
        os.link(file, folder / file.name)
    size, whole = (sum(f.stat().st_size for f in those) for those in (some, files))
    return folder, f"{len(some):,} of the {len(files):,} tables, {size:,} bytes, {size / whole:.1%} of the lake"


__all__ = ["by_spark", "planned"]
