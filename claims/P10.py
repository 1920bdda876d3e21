"""P10, TIES-Merging: does trimming and electing signs merge better than averaging and tuned task arithmetic?

The rule of the verdict (written from the paper's abstract and its ablation before any number was known). A cell is a
bed at one size. All ways but the plain average are tuned over equally many settings on the same validation examples;
for ties four densities share the budget, so that its scales are the coarser grid.

1. ties beats the plain average at every cell by more than two paired standard errors.
2. ties beats tuned task arithmetic: in the mean over the cells by more than two standard errors, and at no cell is it
   worse by more than two.
3. and 4. Without trimming, and without electing signs, it is worse: in the mean over the cells by more than two
   standard errors.
5. A fine-tune whose task vector is trimmed to its largest fifth loses less than one point, at every cell.
6. Of the parameters that at least two trimmed task vectors keep, the share with both signs grows with every further
   task, at every cell. (Were signs to agree, or conflicts a matter of a few tasks, it would not.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

import nett
from claims.beds import Bed, Case, Flat, accuracy
from claims.merging import (
    ALONE,
    AVERAGE,
    BASE,
    TASK_ARITHMETIC,
    TIES,
    Say,
    Way,
    add_trivial,
    all_cases,
    merged_points,
    scales,
    slope_figures,
    tune,
    with_density,
)
from claims.outcomes import Cell, Outcomes, better, mean_gap, say_gaps
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P10"
CLAIM = (
    "Merging trimmed task vectors by elected signs beats plain averaging and tuned task arithmetic, because both the "
    "redundant small changes and the conflicts of sign, which grow with the number of tasks, interfere."
)
METHODS = ["merge/ties"]

FIFTH = 0.2
SUBSETS = 28  # of the tasks, for each number of them; all pairs of eight
TRIMMED = "each fine-tune, task vector trimmed to a fifth"
UNTUNED = "ties at density 0.2 and scale 1, untuned"
COSINE = "mean cosine of two task vectors"
IN_FIFTH = "squared norm of a task vector in its largest fifth"
DROPPED = "magnitude of the trimmed task vectors that election drops"
TOWARDS = "mean cosine with the task vectors, of what was merged by"


def trim(delta: Flat, density: float) -> Flat:
    """A task vector with all but its largest entries at zero: with one model, all that ties does is to trim."""
    return nett.merge.ties(np.zeros_like(delta), [delta], density=density, scale=1.0)


def ties_without_election(base: Flat, tuned: Sequence[Flat], *, density: float, scale: float) -> Flat:
    """The mean of the entries that trimming left, whatever their signs."""
    total, count = np.zeros_like(base), np.zeros_like(base)
    for model in tuned:
        kept = trim(model - base, density)
        total += kept
        count += kept != 0
    return base + np.float32(scale) * (total / np.maximum(count, 1))


def ties_without_trimming(base: Flat, tuned: Sequence[Flat], *, scale: float) -> Flat:
    """Election and disjoint mean of whole task vectors."""
    return nett.merge.ties(base, tuned, density=1.0, scale=scale)


NO_TRIM = Way("ties without trimming", ties_without_trimming, lambda n: [{"scale": s} for s in scales(3.0, 80)])
NO_ELECTION = Way("ties without election", ties_without_election, lambda n: with_density(3.0))
WAYS = (TASK_ARITHMETIC, TIES, NO_TRIM, NO_ELECTION)


def conflicts(trimmed: Sequence[Flat], seed: int) -> dict[int, tuple[float, float]]:
    """Number of tasks -> of the entries that two or more keep, the percentage with both signs: as it is, and as it
    would be in the mean if signs were coins. Mean over subsets of the tasks."""
    signs = np.stack([np.sign(t).astype(np.int8) for t in trimmed])
    rng, found = np.random.default_rng([seed, 10]), {}
    for count in range(2, len(trimmed) + 1):
        subsets = list(combinations(range(len(trimmed)), count))
        picked = rng.permutation(len(subsets))[:SUBSETS]
        rows = []
        for i in picked:
            up = (signs[list(subsets[i])] > 0).sum(axis=0)
            kept = np.abs(signs[list(subsets[i])]).sum(axis=0)
            up, kept = up[kept >= 2], kept[kept >= 2]
            rows.append([100 * float(((up > 0) & (up < kept)).mean()), 100 * float((1 - 0.5 ** (kept - 1.0)).mean())])
        mixed, coins = np.mean(rows, axis=0)
        found[count] = float(mixed), float(coins)
    return found


def towards(bed: Bed, merged: Flat) -> float:
    """Mean cosine of what a merge changed with the task vectors."""
    change = merged - bed.base
    size = np.linalg.norm(change)
    return float(np.mean([change @ (m - bed.base) / (size * np.linalg.norm(m - bed.base)) for m in bed.models]))


def anatomy(bed: Bed, trimmed: Sequence[Flat]) -> dict[str, float]:
    """What trimming and election have to work with on a bed, in percent."""
    deltas = [m - bed.base for m in bed.models]
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in combinations(deltas, 2)]
    norm = np.mean([float(t @ t) / float(d @ d) for t, d in zip(trimmed, deltas, strict=True)])
    stacked = np.stack(trimmed)
    elected = np.sign(stacked.sum(axis=0))
    lost = float(np.abs(stacked[np.sign(stacked) == -elected]).sum() / np.abs(stacked).sum())
    return {COSINE: 100 * float(np.mean(cosines)), IN_FIFTH: 100 * float(norm), DROPPED: 100 * lost}


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    return experiment(all_cases(seeds, skipped), skipped, progress)


def experiment(cases: Iterable[Case], skipped: dict[str, str], progress: Say) -> Result:
    """Tune, test and take apart; ``cases`` are used up one by one."""
    outcomes, figures, frontier = Outcomes(), list[Figure](), list[Point]()
    mixed: dict[Cell, list[dict[int, tuple[float, float]]]] = {}
    last: dict[Cell, tuple[Bed, dict[str, Any]]] = {}
    for case in cases:
        bed, cell, first = case.bed, (case.bed.name, case.bed.size), min(case.draws)
        add_trivial(outcomes, case)
        trimmed = [trim(m - bed.base, FIFTH) for m in bed.models]
        cut = bed.own_correct([bed.base + t for t in trimmed], "test")
        untuned = bed.all_correct(nett.merge.ties(bed.base, bed.models, density=FIFTH, scale=1.0), "test")
        for seed in case.draws:
            outcomes.add(bed, seed, TRIMMED, cut)
            outcomes.add(bed, seed, UNTUNED, untuned)
        found = conflicts(trimmed, first)
        mixed.setdefault(cell, []).append(found)
        for count in (n for n in found if n in (2, 4, 8)):
            for what, value in zip(("", ", if signs were coins"), found[count], strict=True):
                figures.append(Figure(*cell, first, f"entries with both signs, {count} tasks{what}", value))
        figures += [Figure(*cell, first, what, value) for what, value in anatomy(bed, trimmed).items()]
        for way in WAYS:
            for seed, chosen in tune(bed, case.draws, way).items():
                outcomes.add(bed, seed, way.name, chosen.correct)
                figures.append(Figure(*cell, seed, way.name, accuracy(chosen.correct), note=chosen.note))
                last.setdefault(cell, (bed, {}))[1][way.name] = chosen.settings
                points_to = towards(bed, way.make(bed.base, bed.models, **chosen.settings))
                figures.append(Figure(*cell, seed, f"{TOWARDS} {way.name}", 100 * points_to))
        progress(f"{bed.name}, {bed.size}, seed {first}: " + _line(outcomes, cell))
    for cell, by_seed in outcomes.correct.items():
        for name in (ALONE, AVERAGE, BASE, TRIMMED, UNTUNED):
            figures += [Figure(*cell, seed, name, accuracy(found[name])) for seed, found in by_seed.items()]
    for other in (AVERAGE, TASK_ARITHMETIC.name):
        figures += slope_figures(outcomes, TIES.name, other)
    for bed, settings in last.values():
        kernels = {way.name: way.make for way in (TIES, TASK_ARITHMETIC)}
        frontier += merged_points(outcomes, bed, kernels, settings)
    checks = _checks(outcomes, mixed)
    because = () if all(c.holds for c in checks) else _because(outcomes, figures, [bed for bed, _ in last.values()])
    return Result(checks, figures, frontier, skipped, because)


def _because(outcomes: Outcomes, figures: Sequence[Figure], beds: Sequence[Bed]) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""

    def span(what: str) -> tuple[float, float]:
        found = [f.value for f in figures if f.what == what]
        return min(found), max(found)

    largest = max(bed.base.size for bed in beds)
    said = [f"The largest model here has {largest:,} weights; those of the paper start near 90 million."]
    (low, high), (least, most) = span(COSINE), span(IN_FIFTH)
    if max(abs(low), abs(high)) < 20:
        both, coins = (span(f"entries with both signs, 2 tasks{more}") for more in ("", ", if signs were coins"))
        said.append(
            f"The task vectors are nearly orthogonal (mean cosine {low / 100:.3f} to {high / 100:.3f}), and two of them "
            f"differ in sign at {both[0]:.0f} to {both[1]:.0f} % of the entries that both keep, coins at {coins[0]:.0f} %: "
            "there is hardly any common will that an election could find."
        )
    ours, sums = span(f"{TOWARDS} ties"), span(f"{TOWARDS} task arithmetic")
    if ours[1] < sums[1] and ours[0] < sums[0]:
        said.append(
            f"What ties merges points less towards the tasks (mean cosine {ours[0] / 100:.2f} to {ours[1] / 100:.2f}) "
            f"than their plain sum ({sums[0] / 100:.2f} to {sums[1] / 100:.2f}), and no scale mends a direction."
        )
    lost = {cell: outcomes.gap(cell, ALONE, TRIMMED).mean for cell in outcomes.correct}
    if max(lost.values()) >= 1:
        said.append(
            f"The task vectors are not redundant: their largest fifth holds {least:.0f} to {most:.0f} % of the squared "
            f"norm, and a fine-tune trimmed to it loses {min(lost.values()):.1f} to {max(lost.values()):.1f} points "
            "before anything is merged."
        )
    return said


def _line(outcomes: Outcomes, cell: Cell) -> str:
    return ", ".join(f"{n} {outcomes.accuracies(cell, n)[-1]:.2f}" for n in (ALONE, AVERAGE, *(w.name for w in WAYS)))


def _checks(outcomes: Outcomes, mixed: dict[Cell, list[dict[int, tuple[float, float]]]]) -> list[Check]:
    average, arithmetic = outcomes.gaps("ties", AVERAGE), outcomes.gaps("ties", TASK_ARITHMETIC.name)
    trimming, election = outcomes.gaps("ties", NO_TRIM.name), outcomes.gaps("ties", NO_ELECTION.name)
    loss = {cell: outcomes.gap(cell, ALONE, TRIMMED) for cell in outcomes.correct}
    shares = {
        cell: [float(np.mean([found[n][0] for found in rows])) for n in sorted(rows[0])] for cell, rows in mixed.items()
    }
    grows = all(b > a for row in shares.values() for a, b in pairwise(row))
    said = "; ".join(f"{bed} {size} {row[0]:.1f} to {row[-1]:.1f} %" for (bed, size), row in shares.items())
    return [
        Check(
            "ties beats the plain average at every bed and size by more than two standard errors",
            all(g.above for g in average.values()),
            say_gaps(average),
        ),
        Check(
            "ties beats tuned task arithmetic in the mean over beds and sizes, and is worse at none (two standard errors)",
            better(arithmetic),
            say_gaps(arithmetic),
        ),
        Check(
            "ties without trimming is worse in the mean (two standard errors)",
            mean_gap(trimming).above,
            say_gaps(trimming),
        ),
        Check(
            "ties without electing signs is worse in the mean (two standard errors)",
            mean_gap(election).above,
            say_gaps(election),
        ),
        Check(
            "a task vector trimmed to its largest fifth loses less than one point on its own task",
            all(g.mean < 1 for g in loss.values()),
            say_gaps(loss),
        ),
        Check(
            "the share of entries with both signs, of those that two or more tasks keep, grows with each further task",
            grows,
            said,
        ),
    ]
