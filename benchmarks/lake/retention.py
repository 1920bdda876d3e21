"""The planner on a containment graph of 10,000 tables: its gap to the bound, its time, and what greedy leaves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

from nett.core.bench import Figure, Outcome, Series
from nett.core.retention import Limits, plan_retention

TITLE = "which of 10,000 tables to delete"
RATES = (1.0, 0.2, 0.05)  # of the accesses: the fewer, the more is worth deleting, and the harder it is
SECONDS = 40.0  # of the planner, which it may overshoot
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    grown, real_sizes = _generator()
    figures = []
    for rate in RATES[:1] if pico else RATES:
        for minutes in (inf,) if pico else (inf, 2.0):
            lake = grown(real_sizes(200 if pico else 10_000, 0), 0)
            for table in lake.reads:
                lake.reads[table] *= rate
            edges, limits = lake.edges(), Limits(seconds=minutes * 60)
            began, used = time.monotonic(), time.process_time()
            found = plan_retention(lake.sizes(), edges, limits, worth=lake.worth, seconds=SECONDS)
            wall, used = time.monotonic() - began, time.process_time() - used
            greedy = plan_retention(lake.sizes(), edges, limits, worth=lake.worth, solver="greedy")
            keeping = sum(map(lake.keeping, lake.size))
            what = f"accesses x {rate:g}, {'no limit of latency' if minutes == inf else f'{minutes:g} minutes at most'}"
            note = (
                f"{len(lake.size):,} tables, {len(edges):,} edges; keeping all costs {keeping:.2f}, the plan"
                f" {keeping - found.freed:.2f}, greedy {keeping - greedy.freed:.2f}, at least {keeping - found.bound:.2f}"
            )
            say(f"{what}: gap {found.gap:.3%}, {wall:.1f} s, {used:.1f} s of CPU; {note}")
            figures += [
                Figure(f"gap to the bound, {what}", _series("of the bound", found.gap), bar=0.05, note=note),
                Figure(f"wall time, {what}", _series("s", wall), bar=60.0),
            ]
    return Outcome(figures)


def _series(unit: str, value: float) -> Series:
    return Series("nett", unit, [value], [], "nett.core.retention.plan_retention")


def _generator() -> tuple[Any, Any]:
    """The graphs, as the tests have them: they are written down once."""
    tests = str(Path(__file__).resolve().parents[2] / "tests")
    sys.path.insert(0, tests)
    try:
        from support.containment import grown, real_sizes  # type: ignore[import-not-found]
    finally:
        sys.path.remove(tests)
    return grown, real_sizes
