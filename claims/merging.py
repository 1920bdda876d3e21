"""What claims about merging share: ways to merge with equally large grids, tuning on validation, frontier points.

Every way is tuned over :data:`BUDGET` settings on the same validation examples, judged by the mean accuracy over the
tasks, and only its best setting sees the test examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import nett
from claims.beds import Bed, Case, Flat, Rows, accuracy, merge8_cases, why_no_merge8
from claims.digits import digits_cases
from claims.outcomes import Correct, Outcomes, spread
from nett.core.claims import Figure
from nett.core.standing import Point

BUDGET = 80
DENSITIES = (0.1, 0.2, 0.4, 0.7)  # a quarter of the budget each, for scales

ALONE, AVERAGE, BASE = "each fine-tune on its own task", "plain average", "base"

Settings = Mapping[str, Any]
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
        said = ", ".join(f"{k} {v:g}" for k, v in self.settings.items() if isinstance(v, int | float))
        return said + ", the end of the grid" if self.at_edge else said


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


def merged_points(
    outcomes: Outcomes, bed: Bed, kernels: Mapping[str, Callable[..., Flat]], settings: Mapping[str, Settings]
) -> list[Point]:
    """The points of one cell for the shared frontier: ways that give one model (by name, as they were tuned last),
    and the trivial answers: keeping all fine-tunes, their plain average, the base as it is.

    None where the seeds drew different tasks: their accuracies have nothing in common to rank ways by.
    """
    if bed.size == "4 tasks":
        return []
    size, average = file_bytes(bed), seconds_of(lambda: nett.merge.linear(bed.models))
    found = [
        frontier_point(outcomes, bed, ALONE, "every fine-tune kept", size * len(bed.tasks), 0.0, trivial=True),
        frontier_point(outcomes, bed, AVERAGE, "merge/linear", size, average, trivial=True),
        frontier_point(outcomes, bed, BASE, "the base alone", size, 0.0, trivial=True),
    ]
    for name, kernel in kernels.items():
        seconds = seconds_of(partial(kernel, bed.base, bed.models, **settings[name]))
        found.append(frontier_point(outcomes, bed, name, f"merge/{name.replace(' ', '_')}", size, seconds))
    return found


def frontier_point(
    outcomes: Outcomes, bed: Bed, name: str, method: str, nbytes: float, seconds: float, *, trivial: bool = False
) -> Point:
    """Mean accuracy over the seeds of what goes by ``name``, with its standard deviation."""
    found, asset = outcomes.accuracies((bed.name, bed.size), name), f"checkpoints/{bed.name}, {bed.size}"
    quality, varies = round(float(np.mean(found)), 3), round(spread(found), 3)
    return Point(method, asset, nbytes, quality, varies, round(seconds, 5), trivial)


def slope_figures(outcomes: Outcomes, a: str, b: str) -> list[Figure]:
    """How the difference of two ways changes when a bed's size doubles, for each seed."""
    what = f"{a} minus {b}, change when the size doubles"
    return [
        Figure(bed, "all sizes", seed, what, value)
        for bed, slopes in outcomes.slopes(a, b).items()
        for seed, value in enumerate(slopes)
    ]


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
