"""Benchmarks: is it fast? Finds the benchmark files of a checkout, runs them, stores what came out beside them.

A benchmark file is ``benchmarks/ROOM/NAME.py`` with the literal ``TITLE`` (files without one are helpers) and
``run(work, say, pico) -> Outcome``: ``work`` is a folder that may be kept for the next run, ``pico`` asks for the
smallest bed and one repetition. Figures are ratios to what a user would otherwise take, or to what the machine can
do at all, measured in the same run on the same files.
"""

from __future__ import annotations

import ast
import datetime
import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal, final

from nett.core.errors import Refused, UsageError, did_you_mean
from nett.core.progress import report

Say = Callable[[str], None]
LIBRARIES = ("nett", "numpy", "numba")


@final
@dataclass(frozen=True)
class Series:
    """Repetitions of one measurement. ``load``: the machine's one-minute load average before each."""

    name: str
    unit: str
    runs: Sequence[float]
    load: Sequence[float] = ()
    command: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "min": _short(min(self.runs)),
            "median": _short(median(self.runs)),
            "max": _short(max(self.runs)),
            "runs": [_short(r) for r in self.runs],
            "load": [round(one, 2) for one in self.load],
            "command": self.command,
        }


@final
@dataclass(frozen=True)
class Figure:
    """One line of the table: ours, as a ratio to ``other`` where there is one, against a bar.

    The medians are compared, and the best runs beside them. ``sense`` says on which side of ``bar`` (and of
    ``aim``, which is stricter) the figure must lie; without a bar it is only reported.
    """

    what: str
    ours: Series
    other: Series | None = None
    bar: float | None = None
    aim: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        mine, theirs = self.ours, self.other
        value = _ratio(median(mine.runs), median(theirs.runs)) if theirs else median(mine.runs)
        best = min if self.sense == "at most" else max  # a run that nothing disturbed
        of_best = _ratio(best(mine.runs), best(theirs.runs)) if theirs else best(mine.runs)
        return {
            "what": self.what,
            "value": _short(value),
            "value_of_best_runs": _short(of_best),
            "unit": f"x {theirs.name}" if theirs else mine.unit,
            "sense": self.sense,
            "bar": self.bar,
            "met": self._within(value, self.bar),
            "aim": self.aim,
            "aim_met": self._within(value, self.aim),
            "ours": mine.as_json(),
            "other": theirs.as_json() if theirs else None,
            "note": self.note,
        }

    def _within(self, value: float, limit: float | None) -> bool | None:
        if limit is None:
            return None
        return value <= limit if self.sense == "at most" else value >= limit


@final
@dataclass(frozen=True)
class Outcome:
    """What a benchmark came to. ``skipped``: figure -> why it was left out; ``versions``: of what it is set against."""

    figures: Sequence[Figure]
    versions: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Bench:
    """A benchmark file as its literals tell, without running it."""

    room: str
    name: str
    title: str
    file: Path

    @property
    def result(self) -> Path:
        """Where its result is stored, in the checkout."""
        return self.file.parent.parent / "results" / self.room / f"{self.name}.json"


def benches_of(root: Path) -> list[Bench]:
    """All benchmark files of a checkout, by room and name; read with ``ast``, nothing is run."""
    found = []
    for file in sorted((root / "benchmarks").glob("*/*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TITLE":
                found.append(Bench(file.parent.name, file.stem, str(ast.literal_eval(node.value)), file))
    return found


def find_benches(room: str, names: Sequence[str], root: Path) -> list[Bench]:
    """Those of a room, or the named ones of it; UsageError where there is none."""
    every = benches_of(root)
    of_room = {b.name: b for b in every if b.room == room}
    if not of_room:
        rooms = list(dict.fromkeys(b.room for b in every))
        raise UsageError(f"the room {room!r} has no benchmark.{did_you_mean(room, rooms)}", where=root / "benchmarks")
    for name in names:
        if name not in of_room:
            raise UsageError(f"no benchmark of {room} is called {name!r}.{did_you_mean(name, of_room)}")
    return [b for name, b in of_room.items() if name in names or not names]


def run_bench(bench: Bench, *, work: Path, pico: bool = False, say: Say = report.say) -> dict[str, Any]:
    """Run one benchmark. Returns its record, which is not stored yet."""
    began = time.monotonic()

    def progress(text: str) -> None:
        say(f"{bench.room}/{bench.name} {time.monotonic() - began:6.1f} s  {text}")

    work.mkdir(parents=True, exist_ok=True)
    outcome: Outcome = _import(bench).run(work, progress, pico)
    return {
        "room": bench.room,
        "name": bench.name,
        "title": bench.title,
        "command": f"nett bench {bench.room} {bench.name}",
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - began),
        "pico": pico,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | versions(LIBRARIES) | dict(outcome.versions),
        "skipped": dict(outcome.skipped),
        "figures": [f.as_json() for f in outcome.figures],
    }


def store(bench: Bench, record: Mapping[str, Any]) -> Path:
    """Write a record to the checkout."""
    bench.result.parent.mkdir(parents=True, exist_ok=True)
    bench.result.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return bench.result


def stored(root: Path) -> dict[str, dict[str, Any]]:
    """All stored records: ``room/name`` -> record."""
    files = sorted((root / "benchmarks" / "results").glob("*/*.json"))
    return {f"{f.parent.name}/{f.stem}": json.loads(f.read_text(encoding="utf-8")) for f in files}


def machine() -> dict[str, Any]:
    """What was measured on: processor, cores that this process may use, memory. Nothing that names the machine."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def _import(bench: Bench) -> Any:
    """The benchmark's module; its helpers are ``benchmarks.*`` while the checkout's root is on the path."""
    root = str(bench.file.parent.parent.parent)
    sys.path.insert(0, root)
    try:
        return importlib.import_module(f"benchmarks.{bench.room}.{bench.name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "benchmarks":
            raise
        raise Refused(f"needs the Python package {error.name!r}, which is not installed", where=bench.file) from error
    finally:
        sys.path.remove(root)


def _ratio(mine: float, theirs: float) -> float:
    """1 for two that are equal, also where both are nothing (the errors of two exact results)."""
    return 1.0 if mine == theirs else mine / theirs if theirs else float("inf")


def _short(value: float) -> float:
    """Four significant digits: more are noise."""
    return float(f"{value:.4g}")
