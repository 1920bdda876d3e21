"""P04, TALL-masks and Consensus merging: is each task still in the merged vector, and do its rare weights harm?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at one size.
Masks are chosen as the paper says: lambda a task, from five values, by validation. All ways but the plain average are
tuned over equally many settings; the five lambdas count.

1. Models rebuilt from the files that nett wrote keep more than 99 % of their fine-tunes' accuracy in the mean over the
   tasks, at every cell, in float32 and in bfloat16.
2. No single task keeps less than 99 % by more than two paired standard errors, at any cell (float32).
3. They beat the best single merged model (task arithmetic or ties, tuned) by more than two standard errors, at every
   cell.
4. With eight tasks, base, vector and masks take at most a third of the bytes of base and fine-tunes, in files, in
   float32 and in bfloat16.
5. and 6. Consensus merging over task arithmetic beats task arithmetic, and over ties beats the same vector unmasked: in
   the mean over the cells by more than two standard errors, and at no cell is it worse by more than two.
7. Catastrophic weights (of no mask) and selfish ones (of one mask) are more than one percent each, at every cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

import nett
from claims.beds import Bed, Case, accuracy
from claims.masks import (
    CONSENSUS,
    CONSENSUS_TIES,
    OVERLAP,
    REST,
    TIES_SUM,
    TYPES,
    choose_lambdas,
    consensus_over_sum,
    consensus_over_ties,
    interference,
    masked,
    through_files,
    uses,
)
from claims.merging import (
    ALONE,
    AVERAGE,
    BASE,
    DENSITIES,
    TASK_ARITHMETIC,
    TIES,
    Chosen,
    Say,
    Settings,
    add_trivial,
    all_cases,
    frontier_point,
    merged_points,
    seconds_of,
    slope_figures,
    tune,
)
from claims.outcomes import Cell, Outcomes, better, kept, say_gaps, worst_tasks
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P04"
CLAIM = (
    "One multi-task vector and a bit a weight and task give back more than 99 % of each fine-tune's accuracy from a "
    "fraction of the bytes, and leaving out the weights that fewer than two tasks use improves task arithmetic and TIES."
)
METHODS = ["merge/tall_masks", "merge/consensus"]

SINGLE = "best single merged model"
REBUILT = "each task rebuilt from its mask"
OWN_ON_MASK = "each task's own vector on its mask"
KEPT_OF = "accuracy kept of the fine-tunes'"
ROUNDED = {"float32": ALONE, "bfloat16": f"{ALONE}, bfloat16"}
RESTORED = {"float32": REBUILT, "bfloat16": f"{REBUILT}, bfloat16"}
KEPT, THIRD, SOME = 99.0, 1 / 3, 1.0


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    return experiment(all_cases(seeds, skipped), skipped, progress)


@dataclass
class Gathered:
    """What the cases came to, and for each cell what its points on the frontier are measured with."""

    outcomes: Outcomes = field(default_factory=Outcomes)
    figures: list[Figure] = field(default_factory=list)
    shares: dict[Cell, list[tuple[float, float]]] = field(default_factory=dict)  # of no mask, of one
    ratios: dict[tuple[str, str, str], float] = field(default_factory=dict)  # type, cell -> bytes, of eight tasks
    last: dict[Cell, tuple[Bed, dict[str, Settings], list[float], int]] = field(default_factory=dict)

    def note(self, bed: Bed, seed: int, what: str, value: float, unit: str = "%", note: str = "") -> None:
        self.figures.append(Figure(bed.name, bed.size, seed, what, value, unit, note))


def experiment(cases: Iterable[Case], skipped: dict[str, str], progress: Say) -> Result:
    """Mask, rebuild through files, merge with and without consensus; ``cases`` are used up one by one."""
    got = Gathered()
    for case in cases:
        _one_case(got, case)
        names = (ALONE, REBUILT, AVERAGE, TASK_ARITHMETIC.name, CONSENSUS, TIES_SUM.name, CONSENSUS_TIES)
        cell = (case.bed.name, case.bed.size)
        said = ", ".join(f"{n} {got.outcomes.accuracies(cell, n)[-1]:.2f}" for n in names)
        progress(f"{case.bed.name}, {case.bed.size}, seed {max(case.draws)}: {said}")
    outcomes, figures = got.outcomes, got.figures
    for cell, by_seed in outcomes.correct.items():
        for name in (ALONE, AVERAGE, BASE, OWN_ON_MASK, *RESTORED.values(), ROUNDED["bfloat16"]):
            figures += [Figure(*cell, seed, name, accuracy(found[name])) for seed, found in by_seed.items()]
    for a, b in ((REBUILT, ALONE), (CONSENSUS, TASK_ARITHMETIC.name), (CONSENSUS_TIES, TIES_SUM.name)):
        figures += slope_figures(outcomes, a, b)
    frontier = [p for cell in got.last for p in _points(got, cell)]
    checks = _checks(got)
    return Result(checks, figures, frontier, skipped, () if all(c.holds for c in checks) else _because(got))


def _one_case(got: Gathered, case: Case) -> None:
    bed, cell, outcomes = case.bed, (case.bed.name, case.bed.size), got.outcomes
    add_trivial(outcomes, case)
    found: dict[str, dict[int, Chosen]] = {w.name: tune(bed, case.draws, w) for w in (TASK_ARITHMETIC, TIES, TIES_SUM)}
    over_sum = choose_lambdas(bed, case.draws)
    over_ties = {d: choose_lambdas(bed, case.draws, over="ties", density=d) for d in DENSITIES}
    for seed, rows in case.draws.items():
        lambdas = over_sum[seed]
        for way in (consensus_over_sum(lambdas), consensus_over_ties({d: c[seed] for d, c in over_ties.items()})):
            found.setdefault(way.name, {}).update(tune(bed, {seed: rows}, way))
        # Chosen on test, in favour of the merged models, since the rule is that masks beat them.
        single = max((found[w.name][seed] for w in (TASK_ARITHMETIC, TIES)), key=lambda c: accuracy(c.correct))
        outcomes.add(bed, seed, SINGLE, single.correct)
        nbytes = _files(got, bed, seed, lambdas)
        _look_inside(got, bed, seed, lambdas)
        over = masked(bed, over_ties[0.2][seed], over="ties", density=0.2)
        got.note(bed, seed, f"{REBUILT}, over ties", accuracy(bed.own_correct(over, "test")))
        for count in (n for n in (2, 4) if n < len(bed.tasks)):
            few = bed.of(bed.tasks[:count], bed.size)
            back = few.own_correct(masked(few, choose_lambdas(few, {seed: rows})[seed]), "test")
            got.note(bed, seed, f"{KEPT_OF}, first {count} tasks", kept(few.own_correct(few.models, "test"), back))
        got.last[cell] = bed, {n: by[seed].settings for n, by in found.items()}, lambdas, nbytes
    for name, by_seed in found.items():
        for seed, chosen in by_seed.items():
            outcomes.add(bed, seed, name, chosen.correct)
            got.note(bed, seed, name, accuracy(chosen.correct), note=chosen.note)


def _look_inside(got: Gathered, bed: Bed, seed: int, lambdas: list[float]) -> None:
    """Where the accuracy goes: what the masks leave out, what other tasks add within them; and who uses the weights."""
    done = got.outcomes.correct[bed.name, bed.size][seed]
    got.note(bed, seed, f"{KEPT_OF}, all tasks", kept(done[ALONE], done[REBUILT]))
    vectors, values = interference(bed, lambdas)
    got.outcomes.add(bed, seed, OWN_ON_MASK, bed.own_correct(vectors, "test"))
    for what, value in values.items():
        got.note(bed, seed, what, value)
    shares = uses(bed, lambdas)
    got.shares.setdefault((bed.name, bed.size), []).append((shares[0], shares[1]))
    for k, share in enumerate(shares):
        got.note(bed, seed, f"weights in {k} masks", share)


def _files(got: Gathered, bed: Bed, seed: int, lambdas: list[float]) -> int:
    """Merge and restore through files in each type; the bytes that serve all tasks in float32."""
    serving = 0
    for name, dtype in TYPES.items():
        files = through_files(bed, lambdas, dtype)
        ours, apart = files.bytes_base + files.bytes_merged, files.bytes_base + files.bytes_tuned
        got.outcomes.add(bed, seed, RESTORED[name], bed.own_correct(files.restored, "test"))
        got.outcomes.add(bed, seed, ROUNDED[name], bed.own_correct(files.written, "test"))
        got.note(bed, seed, f"base and fine-tunes, {name}", apart, "bytes")
        got.note(bed, seed, f"base, vector and masks, {name}", ours, "bytes")
        got.note(bed, seed, f"receipt and report beside them, {name}", files.bytes_folder - files.bytes_merged, "bytes")
        got.note(bed, seed, f"base, vector and masks of base and fine-tunes, {name}", 100 * ours / apart)
        got.note(bed, seed, f"base, vector and masks of fine-tunes alone, {name}", 100 * ours / files.bytes_tuned)
        if len(bed.tasks) == 8:
            got.ratios[name, bed.name, bed.size] = ours / apart
        serving = ours if name == "float32" else serving
    return serving


def _points(got: Gathered, cell: Cell) -> list[Point]:
    bed, settings, lambdas, nbytes = got.last[cell]
    kernels = {way.name: way.make for way in (TASK_ARITHMETIC, TIES, consensus_over_sum(lambdas))}
    points = merged_points(got.outcomes, bed, kernels, settings)
    if points:
        took = seconds_of(lambda: nett.merge.tall_masks(bed.base, bed.models, mask_lambda=lambdas))
        points.append(frontier_point(got.outcomes, bed, REBUILT, "merge/tall_masks", nbytes, took))
    return points


def _because(got: Gathered) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""
    outcomes, said = got.outcomes, list[str]()
    cells = list(outcomes.correct)

    def means(what: str) -> list[float]:
        """Mean over the seeds of one thing measured, for each cell that it was measured at."""
        by_cell: dict[Cell, list[float]] = {}
        for f in (f for f in got.figures if f.what == what):
            by_cell.setdefault((f.bed, f.size), []).append(f.value)
        return [float(np.mean(v)) for v in by_cell.values()]

    def span(what: str) -> str:
        found = means(what)
        return f"{min(found):.1f} to {max(found):.1f}"

    def lost(before: str, after: str) -> str:
        found = [outcomes.gap(cell, before, after).mean for cell in cells]
        return f"{min(found):.1f} to {max(found):.1f}"

    if min(f.value for f in got.figures if f.what == OVERLAP) > 20:
        said.append(
            f"The tasks do not keep to weights of their own: {span(OVERLAP)} % of one task's largest fifth lies in "
            "another's, and chance gives 20 %."
        )
    text = (
        f"A rebuilt task vector is off by {span(REST)} % of its length. What the masks leave out costs "
        f"{lost(ALONE, OWN_ON_MASK)} points; what the other tasks add within the masks, {lost(OWN_ON_MASK, REBUILT)}."
    )
    two, every = (float(np.mean(means(f"{KEPT_OF}, {n} tasks"))) for n in ("first 2", "all"))
    if two > every:
        text += (
            f" It grows with the tasks: {span(f'{KEPT_OF}, first 2 tasks')} % of the accuracy is kept with two, "
            f"{span(f'{KEPT_OF}, all tasks')} % with all."
        )
    said.append(text)
    if all(outcomes.gap(cell, CONSENSUS, TASK_ARITHMETIC.name).mean < 0 for cell in cells):
        said.append(
            f"Weights of one mask only are {span('weights in 1 masks')} % of all and hold part of what their task "
            f"learnt: consensus drops them and loses {lost(TASK_ARITHMETIC.name, CONSENSUS)} points to task arithmetic."
        )
    return said


def _checks(got: Gathered) -> list[Check]:
    outcomes = got.outcomes
    shares_kept = {
        (name, *cell): outcomes.kept(cell, ROUNDED[name], RESTORED[name]) for name in TYPES for cell in outcomes.correct
    }
    worst = worst_tasks(outcomes, ALONE, REBUILT, KEPT)
    over_single = outcomes.gaps(REBUILT, SINGLE)
    arithmetic, ties = outcomes.gaps(CONSENSUS, TASK_ARITHMETIC.name), outcomes.gaps(CONSENSUS_TIES, TIES_SUM.name)
    shares = {cell: np.mean(rows, axis=0) for cell, rows in got.shares.items()}
    return [
        Check(
            "rebuilt tasks keep more than 99 % of their fine-tunes' accuracy in the mean, in float32 and bfloat16",
            all(value > KEPT for value in shares_kept.values()),
            "; ".join(f"{' '.join(key[1:])} {key[0]} {value:.2f} %" for key, value in shares_kept.items()),
        ),
        Check(
            "no task keeps less than 99 % by more than two standard errors",
            not any(gap.below for _, gap in worst),
            "the worst: " + "; ".join(f"{task} {KEPT + gap.mean:.2f} ± {gap.error:.2f} %" for task, gap in worst),
        ),
        Check(
            "rebuilt tasks beat the best single merged model at every bed and size by more than two standard errors",
            all(g.above for g in over_single.values()),
            say_gaps(over_single),
        ),
        Check(
            "base, vector and masks of eight tasks take at most a third of the bytes of base and fine-tunes",
            bool(got.ratios) and all(r <= THIRD for r in got.ratios.values()),
            "; ".join(f"{' '.join(key[1:])} {key[0]} {100 * r:.1f} %" for key, r in got.ratios.items()),
        ),
        Check(
            "consensus beats tuned task arithmetic in the mean, and is worse nowhere (two standard errors)",
            better(arithmetic),
            say_gaps(arithmetic),
        ),
        Check(
            "consensus over ties beats the same vector unmasked in the mean, and is worse nowhere (two standard errors)",
            better(ties),
            say_gaps(ties),
        ),
        Check(
            "weights that no mask keeps, and weights that one mask keeps, are more than one percent each",
            all(min(pair) > SOME for pair in shares.values()),
            "; ".join(f"{' '.join(cell)} {pair[0]:.1f} and {pair[1]:.1f} %" for cell, pair in shares.items()),
        ),
    ]
