"""Test outcomes of several ways on several beds, seed by seed, and their differences, example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot, log2, sqrt

import numpy as np

from claims.beds import Bed, accuracy, sampling_error

Correct = Mapping[str, np.ndarray]  # task -> per example, whether the answer is right
Cell = tuple[str, str]  # bed, size


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

    def kept(self, cell: Cell, before: str, after: str) -> float:
        """Mean over the seeds of :func:`kept`."""
        return float(np.mean([kept(found[before], found[after]) for found in self.correct[cell].values()]))

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


def kept(before: Correct, after: Correct) -> float:
    """Mean over the tasks of the accuracy after, as a percentage of the accuracy before."""
    return 100 * float(np.mean([after[task].mean() / before[task].mean() for task in before]))


def worst_tasks(outcomes: Outcomes, before: str, after: str, limit: float) -> list[tuple[str, Gap]]:
    """For each cell the task that falls short of keeping ``limit`` percent by most standard errors, and by how much."""
    found = []
    for cell, by_seed in outcomes.correct.items():
        rows: dict[str, list[tuple[float, float]]] = {}
        for done in by_seed.values():
            for task, now in done[after].items():
                then = done[before][task]
                error = sampling_error({task: now}, {task: then}) / then.mean()
                rows.setdefault(task, []).append((100 * now.mean() / then.mean() - limit, error))
        gaps = {}
        for task, pairs in rows.items():
            values, errors = zip(*pairs, strict=True)
            gaps[task] = Gap(float(np.mean(values)), hypot(spread(values) / sqrt(len(values)), float(np.mean(errors))))
        task = min(gaps, key=lambda t: gaps[t].mean / max(gaps[t].error, 1e-9))
        found.append((f"{' '.join(cell)} {task}", gaps[task]))
    return found
