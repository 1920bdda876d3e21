"""P74, PCB-Merging: does competition within and between the tasks merge better than ties and task arithmetic?

The rule of the verdict (written from the paper's abstract and its ablation before any number was known). A cell is a
bed at one size. All ways but the plain average are tuned over equally many settings on the same validation examples;
for pcb and its ablations four ratios, as for ties four densities, share the budget. pcb is the paper's variant; that
of the authors' code is tuned and shown beside it, with a part of the rule of its own.

1. pcb beats tuned task arithmetic: in the mean over the cells by more than two paired standard errors, and at no cell
   is it worse by more than two.
2. pcb beats tuned ties in the same way.
3. pcb beats the plain average at every cell by more than two standard errors.
4. and 5. Without intra-balancing, and without inter-balancing, it is worse: in the mean over the cells by more than
   two standard errors.
6. The authors' code does what the paper says: its variant is not worse than the paper's in the mean over the cells by
   more than two standard errors, nor better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

import nett
from claims.beds import Bed, Case, Flat, accuracy
from claims.merging import (
    ALONE,
    AVERAGE,
    BASE,
    BUDGET,
    TASK_ARITHMETIC,
    TIES,
    Say,
    Settings,
    Way,
    add_trivial,
    all_cases,
    merged_points,
    scales,
    slope_figures,
    tune,
)
from claims.outcomes import Cell, Gap, Outcomes, better, mean_gap, say_gaps
from nett.core.claims import Check, Figure, Result
from nett.core.errors import NettError
from nett.core.standing import Point

PAPER = "P74"
CLAIM = (
    "Letting the parameters of several task vectors compete, within each task and between the tasks, and keeping those "
    "that score best, merges better than ties and than tuned task arithmetic, and both kinds of competition are needed."
)
METHODS = ["merge/pcb"]

RATIOS = (0.05, 0.1, 0.2, 0.4)  # a quarter of the budget each, for scales
LAST = 3.0
ALONE_IN_PLACE = "entries that a single task holds, of those that any task keeps"
COSINE = "mean cosine of two task vectors"
UNLIKE = "largest error of the ablations' own kernel beside nett's, of the largest change"


def with_ratio(tasks: int) -> list[Settings]:
    """Every ratio with its share of the budget's scales."""
    return [{"ratio": r, "scale": s} for r in RATIOS for s in scales(LAST, BUDGET // len(RATIOS))]


def scores(deltas: Sequence[Flat], *, intra: bool, inter: bool) -> list[Flat]:
    """P74, equations 1 to 3, each factor by itself or both; in float64."""
    found = []
    for one in deltas:
        mine = _softmax(len(deltas) * _norm(one * one)) if intra else np.ones(one.size)
        found.append(mine * sum(_softmax(_norm(one * other)) for other in deltas) if inter else mine)
    return found


def _norm(values: Flat) -> Flat:
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)


def _softmax(values: Flat) -> Flat:
    powers = np.exp(values - values.max())
    return powers / powers.mean()


def competing(
    base: Flat, tuned: Sequence[Flat], *, ratio: float, scale: float, intra: bool = True, inter: bool = True
) -> Flat:
    """P74, equations 4 and 5, over some of its scores."""
    deltas = [m - base for m in tuned]
    total, divisor = np.zeros(base.size), np.zeros(base.size)
    for delta, score in zip(deltas, scores(deltas, intra=intra, inter=inter), strict=True):
        place = int(score.size * (1 - ratio))
        kept = score * (score >= np.partition(score, place)[place])
        total += kept * delta
        divisor += kept
    return (base + scale * (total / np.maximum(divisor, 1e-12))).astype(base.dtype)


PCB = Way("pcb", nett.merge.pcb, with_ratio)
PCB_REPO = Way("pcb, the authors' code", partial(nett.merge.pcb, variant="repo"), with_ratio)
NO_INTRA = Way("pcb without intra-balancing", partial(competing, intra=False), with_ratio)
NO_INTER = Way("pcb without inter-balancing", partial(competing, inter=False), with_ratio)
WAYS = (TASK_ARITHMETIC, TIES, PCB, PCB_REPO, NO_INTRA, NO_INTER)


def anatomy(bed: Bed) -> dict[str, float]:
    """What the competition has to work with on a bed, in percent; NettError if the ablations' kernel is not nett's."""
    deltas = [m - bed.base for m in bed.models]
    nothing = np.zeros_like(bed.base)
    ours = nett.merge.pcb(nothing, deltas, ratio=0.1, scale=1.0)
    plain = competing(nothing, deltas, ratio=0.1, scale=1.0)
    off = float(np.abs(ours - plain).max() / np.abs(plain).max())
    # Scores are float32 in nett: entries that lie within its rounding of the threshold may fall on either side.
    if np.mean(np.abs(ours - plain) > 1e-4 * np.abs(plain).max()) > 1e-4:
        raise NettError(
            f"{bed.name}, {bed.size}: the kernel of the ablations is not what nett merges, off by {off:.3g}"
        )
    held = sum((s >= np.partition(s, i)[i]).astype(int) for s in scores(deltas, intra=True, inter=True)
               for i in [int(s.size * 0.9)])  # fmt: skip
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in combinations(deltas, 2)]
    return {
        COSINE: 100 * float(np.mean(cosines)),
        ALONE_IN_PLACE: 100 * float((held == 1).sum() / (held > 0).sum()),
        UNLIKE: 100 * off,
    }


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    return experiment(all_cases(seeds, skipped), skipped, progress)


def experiment(cases: Iterable[Case], skipped: dict[str, str], progress: Say) -> Result:
    """Tune, test and take apart; ``cases`` are used up one by one."""
    outcomes, figures, frontier = Outcomes(), list[Figure](), list[Point]()
    last: dict[Cell, tuple[Bed, dict[str, Any]]] = {}
    for case in cases:
        bed, cell, first = case.bed, (case.bed.name, case.bed.size), min(case.draws)
        add_trivial(outcomes, case)
        figures += [Figure(*cell, first, what, value) for what, value in anatomy(bed).items()]
        for way in WAYS:
            for seed, chosen in tune(bed, case.draws, way).items():
                outcomes.add(bed, seed, way.name, chosen.correct)
                figures.append(Figure(*cell, seed, way.name, accuracy(chosen.correct), note=chosen.note))
                last.setdefault(cell, (bed, {}))[1][way.name] = chosen.settings
        line = ", ".join(f"{n} {outcomes.accuracies(cell, n)[-1]:.2f}" for n in (AVERAGE, *(w.name for w in WAYS)))
        progress(f"{bed.name}, {bed.size}, seed {first}: {line}")
    for cell, by_seed in outcomes.correct.items():
        for name in (ALONE, AVERAGE, BASE):
            figures += [Figure(*cell, seed, name, accuracy(found[name])) for seed, found in by_seed.items()]
    for other in (AVERAGE, TASK_ARITHMETIC.name, TIES.name):
        figures += slope_figures(outcomes, PCB.name, other)
    for bed, settings in last.values():
        kernels = {way.name: way.make for way in (PCB, TIES, TASK_ARITHMETIC)}
        frontier += merged_points(outcomes, bed, kernels, settings)
    checks = _checks(outcomes)
    because = () if all(c.holds for c in checks) else _because(outcomes, figures, [bed for bed, _ in last.values()])
    return Result(checks, figures, frontier, skipped, because)


def _checks(outcomes: Outcomes) -> list[Check]:
    def against(name: str) -> dict[Cell, Gap]:
        return outcomes.gaps(PCB.name, name)

    rules = [
        (f"pcb beats tuned {way.name} in the mean over beds and sizes, and is worse at none (two standard errors)",
         better(against(way.name)), way.name)
        for way in (TASK_ARITHMETIC, TIES)
    ]  # fmt: skip
    rules.append(
        (
            "pcb beats the plain average at every bed and size by more than two standard errors",
            all(g.above for g in against(AVERAGE).values()),
            AVERAGE,
        )
    )
    for way in (NO_INTRA, NO_INTER):
        rules.append(
            (f"{way.name} is worse in the mean (two standard errors)", mean_gap(against(way.name)).above, way.name)
        )
    gap = mean_gap(against(PCB_REPO.name))
    rules.append(
        (
            "the authors' code and the paper's equations are within two standard errors of each other in the mean",
            not gap.above and not gap.below,
            PCB_REPO.name,
        )
    )
    return [Check(rule, bool(holds), say_gaps(against(name))) for rule, holds, name in rules]


def _because(outcomes: Outcomes, figures: Sequence[Figure], beds: Sequence[Bed]) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""

    def span(what: str) -> tuple[float, float]:
        found = [f.value for f in figures if f.what == what]
        return min(found), max(found)

    said = [
        f"The largest model here has {max(b.base.size for b in beds):,} weights; those of the paper start near 90 million."
    ]
    low, high = span(COSINE)
    alone = span(ALONE_IN_PLACE)
    if max(abs(low), abs(high)) < 20:
        said.append(
            f"The task vectors are nearly orthogonal (mean cosine {low / 100:.3f} to {high / 100:.3f}): of the entries "
            f"that some task keeps at ratio 0.1, {alone[0]:.0f} to {alone[1]:.0f} % are kept by one task alone, so there is "
            "little for tasks to compete about, and what dropping takes from a task vector no scale gives back."
        )
    ratios = [float(f.note.split("ratio ")[1].split(",")[0]) for f in figures if f.what == PCB.name]
    if np.mean([r == max(RATIOS) for r in ratios]) > 0.5:
        said.append(
            f"Validation chose the largest ratio, {max(RATIOS):g}, {sum(r == max(RATIOS) for r in ratios)} of "
            f"{len(ratios)} times: the less is dropped, the better."
        )
    repo = {name: mean_gap(outcomes.gaps(PCB_REPO.name, name)) for name in (TASK_ARITHMETIC.name, TIES.name)}
    said.append("The variant of the authors' code: " + ", ".join(f"{g} against {n}" for n, g in repo.items()) + ".")
    return said
