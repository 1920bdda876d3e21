"""What claims about merging share: ways to merge with equally large grids, tuning on validation, paired differences.

Every way is tuned over :data:`BUDGET` settings on the same validation examples, judged by the mean accuracy over the
tasks, and only its best setting sees the test examples. A difference of two ways is taken example by example.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import hypot, log2, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import nett
from claims.beds import Bed, Case, Flat, Rows, accuracy, merge8_cases, sampling_error, why_no_merge8
from claims.digits import digits_cases
from nett.core.standing import Point

BUDGET = 80
DENSITIES = (0.1, 0.2, 0.4, 0.7)  # a quarter of the budget each, for scales

ALONE, AVERAGE, BASE = "each fine-tune on its own task", "plain average", "base"

Correct = Mapping[str, np.ndarray]  # task -> per example, whether the answer is right
Settings = Mapping[str, Any]
Cell = tuple[str, str]  # bed, size
Say = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """A way to merge: ``make(base, tuned, **settings)``, linear in ``scale``, and its grid for n tasks."""

    name: str
    make: Callable[..., Flat]
    grid: Callable[[int], Sequence[Settings]]


@dataclass(frozen=True)
class Chosen:
    """The setting that was best on one seed's validation examples, and how the model it makes does on test."""

    settings: Settings
    correct: Correct
    at_edge: bool  # the scale is the largest of its grid: a larger one might have been better still

    @property
    def note(self) -> str:
        return ", ".join(f"{k} {v:g}" for k, v in self.settings.items() if isinstance(v, int | float))


def scales(last: float, count: int) -> list[float]:
    """``count`` evenly spaced scales that end with ``last``."""
    return [last * (k + 1) / count for k in range(count)]


def with_density(last: float, count: int = BUDGET) -> list[Settings]:
    """Every density with its share of ``count`` scales."""
    each = count // len(DENSITIES)
    return [{"density": d, "scale": s} for d in DENSITIES for s in scales(last, each)]


def sum_scales(tasks: int, count: int = BUDGET) -> list[float]:
    """Scales on a sum of task vectors: up to five times the plain average, which is one of them."""
    return scales(5 / tasks, count)


TASK_ARITHMETIC = Way("task arithmetic", nett.merge.task_arithmetic, lambda n: [{"scale": s} for s in sum_scales(n)])
TIES = Way("ties", nett.merge.ties, lambda n: with_density(3.0))


def tune(bed: Bed, draws: Mapping[int, Rows], way: Way) -> dict[int, Chosen]:
    """For each seed the best setting on its validation examples; the first of equals."""
    deltas, nothing = [m - bed.base for m in bed.models], np.zeros_like(bed.base)
    grid = way.grid(len(bed.tasks))
    best: dict[int, tuple[float, Settings]] = {}
    known: tuple[Any, Flat] = (None, nothing)
    for settings in grid:
        # The kernels scale last, so one merge of the bare task vectors serves all scales, to the same bits.
        rest = {k: v for k, v in settings.items() if k != "scale"}
        if known[0] != rest:
            known = rest, way.make(nothing, deltas, scale=1.0, **rest)
        correct = bed.all_correct(bed.base + np.float32(settings["scale"]) * known[1], "val")
        for seed, rows in draws.items():
            score = accuracy(correct, rows)
            if seed not in best or score > best[seed][0]:
                best[seed] = score, settings
    largest, tested, found = max(s["scale"] for s in grid), dict[str, Correct](), {}
    for seed, (_, settings) in best.items():
        key = repr(settings)
        if key not in tested:
            tested[key] = bed.all_correct(way.make(bed.base, bed.models, **settings), "test")
        found[seed] = Chosen(settings, tested[key], settings["scale"] >= largest)
    return found


def seconds_of(make: Callable[[], Any]) -> float:
    """Wall time of the fastest of three calls, the first of all left out."""
    make()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        make()
        times.append(time.perf_counter() - began)
    return min(times)


def all_cases(seeds: Sequence[int], skipped: dict[str, str]) -> Iterator[Case]:
    """Both beds at all sizes; notes in ``skipped`` why merge8 cannot be used."""
    why = why_no_merge8()
    if why is not None:
        skipped["merge8"] = why
    return chain(merge8_cases(seeds) if why is None else (), digits_cases(seeds))


@dataclass(frozen=True)
class Gap:
    """A mean difference in percentage points and its standard error."""

    mean: float
    error: float

    @property
    def above(self) -> bool:
        """Whether it is positive beyond two standard errors."""
        return self.mean > 2 * self.error

    @property
    def below(self) -> bool:
        return self.mean < -2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}"


@dataclass
class Outcomes:
    """Test outcomes of every way, by cell and seed, and the paired differences of any two."""

    correct: dict[Cell, dict[int, dict[str, Correct]]] = field(default_factory=dict)

    def add(self, bed: Bed, seed: int, name: str, correct: Correct) -> None:
        self.correct.setdefault((bed.name, bed.size), {}).setdefault(seed, {})[name] = correct

    def accuracies(self, cell: Cell, name: str) -> list[float]:
        """One a seed, percent."""
        return [accuracy(found[name]) for found in self.correct[cell].values()]

    def gap(self, cell: Cell, a: str, b: str) -> Gap:
        """``a`` minus ``b``. The error joins the spread over the seeds with that of the test examples, which seeds
        share (on merge8) or mostly share (on digits), so that more seeds do not make the latter smaller."""
        pairs = [(found[a], found[b]) for found in self.correct[cell].values()]
        values = [accuracy(x) - accuracy(y) for x, y in pairs]
        sampling = float(np.mean([sampling_error(x, y) for x, y in pairs]))
        return Gap(float(np.mean(values)), hypot(spread(values) / sqrt(len(values)), sampling))

    def gaps(self, a: str, b: str) -> dict[Cell, Gap]:
        return {cell: self.gap(cell, a, b) for cell in self.correct}

    def slopes(self, a: str, b: str) -> dict[str, list[float]]:
        """Bed -> by how much ``a`` minus ``b`` changes when the size doubles, one value a seed."""
        found: dict[str, list[float]] = {}
        for bed in dict.fromkeys(bed for bed, _ in self.correct):
            cells = [c for c in self.correct if c[0] == bed]
            at = [log2(number(size)) for _, size in cells]
            if len(cells) > 1:
                rows = zip(*[self._differences(c, a, b) for c in cells], strict=True)
                found[bed] = [float(np.polyfit(at, row, 1)[0]) for row in rows]
        return found

    def _differences(self, cell: Cell, a: str, b: str) -> list[float]:
        return [x - y for x, y in zip(self.accuracies(cell, a), self.accuracies(cell, b), strict=True)]


def number(size: str) -> float:
    """The number in the name of a size, such as ``width 64``."""
    return next(float(word) for word in size.split() if word.isdigit())


def mean_gap(gaps: Mapping[Cell, Gap]) -> Gap:
    """Mean over the cells. Sizes of one bed share test examples, so their errors are added; beds are independent."""
    by_bed: dict[str, float] = {}
    for (bed, _), gap in gaps.items():
        by_bed[bed] = by_bed.get(bed, 0.0) + gap.error
    mean = sum(g.mean for g in gaps.values()) / len(gaps)
    return Gap(mean, sqrt(sum(e * e for e in by_bed.values())) / len(gaps))


def better(gaps: Mapping[Cell, Gap]) -> bool:
    """Better on the whole, and nowhere worse: the mean over the cells is above 0, and no cell's below it, each by
    more than two standard errors."""
    return mean_gap(gaps).above and not any(g.below for g in gaps.values())


def say_gaps(gaps: Mapping[Cell, Gap]) -> str:
    each = "; ".join(f"{bed} {size} {gap}" for (bed, size), gap in gaps.items())
    return f"mean {mean_gap(gaps)}; {each}"


def spread(values: Sequence[float]) -> float:
    """Standard deviation over the seeds; 0 for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def merged_points(outcomes: Outcomes, bed: Bed, seconds: Mapping[str, float]) -> list[Point]:
    """The points of one cell for the shared frontier: ways that give one model (name -> seconds), and the trivial
    answers: keeping all fine-tunes, their plain average, the base as it is."""
    cell, size = (bed.name, bed.size), file_bytes(bed)

    def point(name: str, method: str, nbytes: float, took: float, trivial: bool = False) -> Point:
        found = outcomes.accuracies(cell, name)
        asset = f"checkpoints/{bed.name}, {bed.size}"
        return Point(method, asset, nbytes, round(float(np.mean(found)), 3), round(spread(found), 3), took, trivial)

    average = seconds_of(lambda: nett.merge.linear(bed.models))
    found = [
        point(ALONE, "every fine-tune kept", size * len(bed.tasks), 0.0, trivial=True),
        point(AVERAGE, "merge/linear", size, average, trivial=True),
        point(BASE, "the base alone", size, 0.0, trivial=True),
    ]
    return found + [point(name, f"merge/{name.replace(' ', '_')}", size, took) for name, took in seconds.items()]


def add_trivial(outcomes: Outcomes, case: Case) -> None:
    """What needs no tuning: the fine-tunes, their plain average, and the base."""
    bed = case.bed
    alone = bed.own_correct(bed.models, "test")
    average, base = bed.all_correct(nett.merge.linear(bed.models), "test"), bed.all_correct(bed.base, "test")
    for seed in case.draws:
        for name, correct in ((ALONE, alone), (AVERAGE, average), (BASE, base)):
            outcomes.add(bed, seed, name, correct)


def file_bytes(bed: Bed) -> int:
    """Size of one model's file in float32."""
    with TemporaryDirectory() as folder:
        return bed.write_one(Path(folder), "base", bed.base, torch.float32).stat().st_size
