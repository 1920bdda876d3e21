"""P38, Iterative Feature Merging: do networks hold features twice, so that merging them takes parameters for nothing?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at one size, a
budget the share of all parameters that remain. No way sees data but for choosing among four settings on validation
examples: feature merging which distance, which weights are compared and whether up to scale; magnitude channel pruning
which norm and which widths; random merging which draw and which widths. Networks are compared at equal parameters.

1. At 75 % of the parameters feature merging keeps the accuracy: nowhere does it lose more than one point by more than
   two standard errors.
2. It beats magnitude channel pruning: in the mean over cells and budgets by more than two standard errors, and nowhere
   is it worse by more than two.
3. It beats random merging, likewise.
4. Larger networks have the lower relative feature complexity: in every seed each width of a bed has a lower mean
   complexity (over the paper's values of beta, by the paper's distance) than the next smaller one.

The rule is older than the method: a first run, on the MLPs alone, measured the plain distance of the clusters' means,
by which one cluster took in all others, and at width 1,024 lost to random merging. Ward's distance took its place then,
and the paper's was added; checks, budgets and the number of settings stayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from claims.narrowing import IFM, MAGNITUDE, RANDOM, VARIANTS, Subject, best, subjects, timed
from claims.outcomes import Cell, Gap, Outcomes, better, say_gaps, spread
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point
from nett.merge.ifm import SWEEP

PAPER = "P38"
CLAIM = (
    "Networks hold equal features several times over, so that merging them by their weights, without data, takes "
    "parameters without taking accuracy, and the more the larger the network."
)
METHODS = ["merge/ifm"]
BUDGETS = (0.75, 0.5, 0.25)
WHOLE, COMPLEXITY = "whole network", "mean feature complexity"
LOST = -1.0  # points


@dataclass
class Gathered:
    """What the subjects came to."""

    outcomes: Outcomes = field(default_factory=Outcomes)
    figures: list[Figure] = field(default_factory=list)
    complexity: dict[Cell, list[float]] = field(default_factory=dict)
    bytes: dict[tuple[Cell, str], float] = field(default_factory=dict)
    seconds: dict[Cell, float] = field(default_factory=dict)

    def add(self, subject: Subject, name: str, right: np.ndarray, note: str = "") -> None:
        cell = (subject.bed, subject.size)
        self.outcomes.correct.setdefault(cell, {}).setdefault(subject.seed, {})[name] = {subject.bed: right}
        self.figures.append(Figure(*cell, subject.seed, name, 100 * float(right.mean()), note=note))


def run(seeds: Sequence[int], progress: Callable[[str], None]) -> Result:
    """The experiment on all networks that there are."""
    skipped: dict[str, str] = {}
    got = Gathered()
    for subject in subjects(seeds, skipped):
        progress(_one(got, subject))
    for cell in got.complexity:
        for budget in BUDGETS:
            for other in (MAGNITUDE, RANDOM):
                got.figures.append(
                    Figure(
                        *cell,
                        0,
                        f"{_at(IFM, budget)} minus {other}, mean",
                        _gap(got, cell, budget, other).mean,
                        "points",
                    )
                )
    checks = _checks(got)
    because = () if all(c.holds for c in checks) else _because(got)
    return Result(checks, got.figures, _points(got), skipped, because)


def _one(got: Gathered, subject: Subject) -> str:
    """Narrow one network in every way at every budget; returns what to say of it."""
    cell = (subject.bed, subject.size)
    got.add(subject, WHOLE, subject.right(subject.arrays, "test"))
    trees = {variant: subject.tree(variant) for variant in VARIANTS}
    got.seconds[cell] = timed(lambda: subject.tree(VARIANTS[0]))
    units = sum(g.size for g in subject.symmetry.groups)
    joint = [f.tree for f in trees[VARIANTS[0]].values()]
    remain = [sum(t.size - t.merges(b) for t in joint) / units for b in SWEEP]
    for beta, share in zip(SWEEP, remain, strict=True):
        if beta in (0.01, 0.1, 0.2, 0.3):
            got.figures.append(Figure(*cell, subject.seed, f"feature complexity at beta {beta:g}", 100 * share))
    got.complexity.setdefault(cell, []).append(float(np.mean(remain)))
    got.figures.append(Figure(*cell, subject.seed, COMPLEXITY, 100 * got.complexity[cell][-1]))
    total = subject.parameters({})
    got.bytes[cell, WHOLE] = 4 * total
    for budget in BUDGETS:
        for way, narrow in best(subject, budget, trees).items():
            got.add(subject, _at(way, budget), subject.right(narrow.arrays, "test"), narrow.note)
            share = 100 * narrow.parameters / total
            got.figures.append(Figure(*cell, subject.seed, f"parameters, {_at(way, budget)}", share))
            got.bytes[cell, _at(way, budget)] = 4 * narrow.parameters
    rates = {n: 100 * found[subject.bed].mean() for n, found in got.outcomes.correct[cell][subject.seed].items()}
    return f"{' '.join(cell)}, seed {subject.seed}: " + ", ".join(f"{n} {r:.1f}" for n, r in rates.items())


def _at(way: str, budget: float) -> str:
    return f"{way} at {100 * budget:.0f} %"


def _gap(got: Gathered, cell: Cell, budget: float, other: str) -> Gap:
    return got.outcomes.gap(cell, _at(IFM, budget), _at(other, budget))


def _against(got: Gathered, other: str) -> dict[Cell, Gap]:
    """Cell (with its budget in its size) -> feature merging minus another way."""
    return {
        (bed, f"{size}, {100 * b:.0f} %"): _gap(got, (bed, size), b, other)
        for bed, size in got.complexity
        for b in BUDGETS
    }


def _checks(got: Gathered) -> list[Check]:
    lost = got.outcomes.gaps(_at(IFM, BUDGETS[0]), WHOLE)
    pruning, drawn = _against(got, MAGNITUDE), _against(got, RANDOM)
    rows = _by_width(got)
    return [
        Check(
            "at 75 % of the parameters nothing is lost: nowhere more than one point by more than two standard errors",
            not any(Gap(g.mean - LOST, g.error).below for g in lost.values()),
            say_gaps(lost),
        ),
        Check(
            "feature merging beats magnitude channel pruning at equal parameters, and is worse nowhere",
            better(pruning),
            say_gaps(pruning),
        ),
        Check(
            "feature merging beats random merging at equal parameters, and is worse nowhere",
            better(drawn),
            say_gaps(drawn),
        ),
        Check(
            "in every seed a wider network has a lower relative feature complexity",
            bool(rows) and all(a > b for _, small, large in rows for a, b in zip(small, large, strict=True)),
            "; ".join(f"{what} {100 * np.mean(s):.1f} to {100 * np.mean(w):.1f} %" for what, s, w in rows),
        ),
    ]


def _by_width(got: Gathered) -> list[tuple[str, list[float], list[float]]]:
    """(bed and widths, complexity of the narrower, of the wider) for neighbouring widths."""
    found = []
    for bed in dict.fromkeys(bed for bed, size in got.complexity if size.startswith("width")):
        sizes = [size for b, size in got.complexity if b == bed]
        for small, large in pairwise(sizes):
            what = f"{bed}, {small} to {large.removeprefix('width ')}:"
            found.append((what, got.complexity[bed, small], got.complexity[bed, large]))
    return found


def _points(got: Gathered) -> list[Point]:
    """The whole network, and both ways at half its parameters, for each cell."""
    found = []
    names = {WHOLE: "the whole network", _at(IFM, 0.5): "merge/ifm", _at(MAGNITUDE, 0.5): MAGNITUDE}
    for cell in got.complexity:
        for name, method in names.items():
            rates = got.outcomes.accuracies(cell, name)
            seconds = round(got.seconds[cell], 5) if method == "merge/ifm" else 0.0
            found.append(
                Point(
                    method,
                    f"networks/{', '.join(cell)}",
                    got.bytes[cell, name],
                    round(float(np.mean(rates)), 3),
                    round(spread(rates), 3),
                    seconds,
                    trivial=method != "merge/ifm",
                )
            )
    return found


def _because(got: Gathered) -> list[str]:
    """What this run's figures say of the parts that did not hold."""
    said = []
    few = {
        c: [f.value for f in got.figures if (f.bed, f.size) == c and f.what == "feature complexity at beta 0.1"]
        for c in got.complexity
    }
    shares = [float(np.mean(v)) for v in few.values()]
    said.append(f"At beta 0.1 {min(shares):.0f} to {max(shares):.0f} % of the units remain: {_equal(min(shares))}.")
    for other in (MAGNITUDE, RANDOM):
        by_budget = {b: [_gap(got, c, b, other).mean for c in got.complexity] for b in BUDGETS}
        spans = ", ".join(f"{min(v):+.1f} to {max(v):+.1f} at {100 * b:.0f} %" for b, v in by_budget.items())
        said.append(f"Feature merging minus {other}, points over the cells: {spans}.")
    return said


def _equal(share: float) -> str:
    return "few features are near equal by their weights" if share > 80 else "many features are near equal"
