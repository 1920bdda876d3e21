"""P71, linear mode connectivity by weight matching: is it so, is it not for the distance, is it for the singular vectors?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at one width;
all numbers are means over seeds, with the standard error of the seeds. The barrier is that of the test loss on 25 points of
the line between two networks, BatchNorm's statistics estimated anew on training examples at each of them.

1. Matching connects: at every cell the barrier after weight matching is lower than before by more than two standard
   errors, and at the widest of every bed it is at most a fifth of what it was.
2. Not by distance: at no cell does matching take away more than a quarter of the L2 distance.
3. Singular values stay: no permutation changes one by more than 1e-5 of its layer's largest.
4. Singular vectors are aligned, those of large singular values first: R at gamma 0.3 rises at every cell by more than two
   standard errors, and in the mean over the cells it rises by more than R at gamma 0 does.
5. Width: on every bed the barrier after matching is lower at the widest than at the narrowest by more than two errors.
6. Of three networks, two matched to the first are then connected with each other by weight matching and less so by the
   straight-through estimator: in the mean over the cells where both were run the barrier between them is lower after
   weight matching by more than two standard errors. (The estimator's rate is the better of two by its own training loss.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt

import numpy as np

from claims.apart import Pair, Tensors, beds, trained
from claims.outcomes import Cell, Gap, say_gaps, spread
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point
from nett.core.symmetry.matching import align
from nett.merge.analysis import POINTS, barrier, decomposed, distance_ratio, interpolated, singular_alignment
from nett.merge.straight_through import straight_through
from nett.merge.weight_matching import averaged, weight_matching

PAPER = "P71"
CLAIM = (
    "Permuting the units of one network to lie nearest to another's connects the two with hardly a barrier, not because they "
    "come close but because the singular vectors of large singular values are aligned; and unlike the straight-through "
    "estimator it connects three networks with each other."
)
METHODS = ["merge/weight_matching"]

Say = Callable[[str], None]
NAIVE, MATCHED, RANDOM = "barrier as they are", "barrier matched", "barrier permuted at random"
SECOND_THIRD_WM, SECOND_THIRD_STE = (
    "barrier of second and third, matched",
    "barrier of second and third, straight-through",
)
FIRST_SECOND_STE = "barrier straight-through"
RATIO, DRIFT = (
    "share of the distance that matching takes away",
    "largest change of a singular value, of its layer's largest",
)
BEFORE, AFTER = "R before, gamma {}", "R matched, gamma {}"
GAMMAS = (0.0, 0.1, 0.3)
STRAIGHT_WIDTHS = {"digits": 64, "mnist": 128}
RATES, EPOCHS = (1e-2, 1e-3), 10


def line(pair: Pair, one: Tensors, other: Tensors) -> list[tuple[float, float, float]]:
    """(share, loss, accuracy) on the test examples; statistics from the training examples."""
    found = []
    for share in np.linspace(0.0, 1.0, POINTS):
        here = interpolated(one, other, float(share))
        found.append((float(share), *pair.test.loss(pair.train.restated(here) if 0 < share < 1 else here)))
    return found


def looked_at(pair: Pair) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of one pair, and the accuracies (percent) of what could be kept of it."""
    first, second = pair.models[0], pair.models[1]
    began = time.process_time()
    orders = align(first, second, pair.symmetry, seed=pair.seed).orders
    seconds = time.process_time() - began
    placed = pair.symmetry.apply(second, orders)
    randomly = pair.symmetry.apply(second, pair.symmetry.random(np.random.default_rng(pair.seed)))
    lines = {NAIVE: line(pair, first, second), MATCHED: line(pair, first, placed), RANDOM: line(pair, first, randomly)}
    found = {what: barrier(points) for what, points in lines.items()}
    found[RATIO] = distance_ratio(first, second, placed)
    parts = [decomposed(t) for t in (first, second, placed)]
    found[DRIFT] = max(float(np.max(np.abs(parts[1][n][1] - parts[2][n][1])) / parts[1][n][1][0]) for n in parts[1])
    for gamma in GAMMAS:
        found[BEFORE.format(gamma)] = singular_alignment(parts[0], parts[1], gamma)
        found[AFTER.format(gamma)] = singular_alignment(parts[0], parts[2], gamma)
    merged = weight_matching([first, second], pair.symmetry, pair.train, seed=pair.seed).tensors
    plain = pair.train.restated(averaged([first, second], [1.0, 1.0]))
    logits = [pair.test.outputs(m) for m in (first, second)]
    labels = pair.test.labels
    assert labels is not None
    kept = {
        "both": 100 * float((_probabilities(logits[0]) + _probabilities(logits[1])).argmax(1).__eq__(labels).mean()),
        "one": 100 * pair.test.loss(first)[1],
        "plain": 100 * pair.test.loss(plain)[1],
        "matched": 100 * pair.test.loss(merged)[1],
        "seconds": seconds,
    }
    return found, kept


def three(pair: Pair) -> dict[str, float]:
    """Barriers between the second and the third network, each matched to the first."""
    first = pair.models[0]
    by_weights = [
        pair.symmetry.apply(m, align(first, m, pair.symmetry, seed=pair.seed).orders) for m in pair.models[1:3]
    ]
    by_loss = []
    for model in pair.models[1:3]:
        tried = [
            straight_through(first, model, pair.symmetry, pair.train, epochs=EPOCHS, rate=rate, seed=pair.seed)
            for rate in RATES
        ]
        by_loss.append(pair.symmetry.apply(model, max(tried, key=lambda a: a.objective[-1]).orders))
    return {
        SECOND_THIRD_WM: barrier(line(pair, *by_weights)),
        SECOND_THIRD_STE: barrier(line(pair, *by_loss)),
        FIRST_SECOND_STE: barrier(line(pair, first, by_loss[0])),
    }


def _probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def run(seeds: Sequence[int], progress: Say) -> Result:
    """Train, match and look at all beds that there are."""
    skipped: dict[str, str] = {}
    values: dict[Cell, list[dict[str, float]]] = {}
    kept: dict[Cell, list[dict[str, float]]] = {}
    sizes: dict[Cell, int] = {}
    for bed in beds(skipped):
        for width in bed.widths:
            for seed in seeds:
                pair = trained(bed, width, seed)
                cell = (pair.bed, pair.size)
                found, left = looked_at(pair)
                if STRAIGHT_WIDTHS.get(bed.name) == width:
                    found |= three(pair)
                values.setdefault(cell, []).append(found)
                kept.setdefault(cell, []).append(left)
                sizes[cell] = sum(t.nbytes for t in pair.models[0].values())
                said = ", ".join(f"{what} {found[what]:.3f}" for what in (NAIVE, MATCHED, RATIO))
                progress(f"{bed.name}, width {width}, seed {seed}: {said}")
    figures = [
        Figure(*cell, seed, what, value, unit="")
        for cell, rows in values.items()
        for seed, row in zip(seeds, rows, strict=True)
        for what, value in row.items()
    ]
    figures += [
        Figure(*cell, seed, f"accuracy, {what}", row[what])
        for cell, rows in kept.items()
        for seed, row in zip(seeds, rows, strict=True)
        for what in ("both", "one", "plain", "matched")
    ]
    checks = _checks(values)
    because = [] if all(c.holds for c in checks) else _because(values, kept)
    return Result(checks, figures, _points(kept, sizes), skipped, because)


def gap(rows: Sequence[Mapping[str, float]], what: Callable[[Mapping[str, float]], float]) -> Gap:
    """Mean over the seeds of a number of each, and its standard error."""
    found = [what(row) for row in rows]
    return Gap(float(np.mean(found)), spread(found) / sqrt(len(found)))


def _rise(row: Mapping[str, float], at: float) -> float:
    return row[AFTER.format(at)] - row[BEFORE.format(at)]


def _checks(values: Mapping[Cell, Sequence[Mapping[str, float]]]) -> list[Check]:
    by_bed: dict[str, list[Cell]] = {}
    for cell in values:
        by_bed.setdefault(cell[0], []).append(cell)
    fell = {c: gap(rows, lambda r: r[NAIVE] - r[MATCHED]) for c, rows in values.items()}
    share = {
        cells[-1]: _mean(values[cells[-1]], MATCHED) / _mean(values[cells[-1]], NAIVE) for cells in by_bed.values()
    }
    ratio = {c: _mean(rows, RATIO) for c, rows in values.items()}
    drift = max(r[DRIFT] for rows in values.values() for r in rows)
    rise = {g: {c: gap(rows, partial(_rise, at=g)) for c, rows in values.items()} for g in GAMMAS}
    more = {
        c: gap(
            rows,
            lambda r: (r[AFTER.format(0.3)] - r[BEFORE.format(0.3)]) - (r[AFTER.format(0.0)] - r[BEFORE.format(0.0)]),
        )
        for c, rows in values.items()
    }
    width = {
        (bed, f"{cells[0][1]} to {cells[-1][1]}"): _difference(values[cells[0]], values[cells[-1]])
        for bed, cells in by_bed.items()
    }
    both = {
        c: gap(rows, lambda r: r[SECOND_THIRD_STE] - r[SECOND_THIRD_WM])
        for c, rows in values.items()
        if SECOND_THIRD_WM in rows[0]
    }
    told = {c: f"{_mean(rows, NAIVE):.3f} to {_mean(rows, MATCHED):.3f}" for c, rows in values.items()}
    return [
        Check(
            "matching lowers the barrier at every bed and width (two standard errors), and at the widest to a fifth or less",
            all(g.above for g in fell.values()) and all(s <= 0.2 for s in share.values()),
            "; ".join(f"{' '.join(c)} {t}" for c, t in told.items())
            + "; left at the widest: " + ", ".join(f"{c[0]} {100 * s:.0f} %" for c, s in share.items()),
        ),
        Check(
            "matching takes away at most a quarter of the distance at every bed and width",
            all(r <= 0.25 for r in ratio.values()),
            "; ".join(f"{' '.join(c)} {100 * r:.1f} %" for c, r in ratio.items()),
        ),
        Check("no singular value changes by more than 1e-5 of its layer's largest", drift <= 1e-5, f"at most {drift:.1e}"),
        Check(
            "R at gamma 0.3 rises at every bed and width, and in the mean by more than at gamma 0 (two standard errors)",
            all(g.above for g in rise[0.3].values()) and _mean_gap(more).above,
            f"gamma 0.3: {say_gaps(rise[0.3])}; more than at gamma 0: {say_gaps(more)}",
        ),
        Check(
            "the barrier after matching is lower at the widest than at the narrowest, on every bed (two standard errors)",
            all(g.above for g in width.values()),
            "; ".join(f"{' '.join(c)} {g}" for c, g in width.items()),
        ),
        Check(
            "second and third network, both matched to the first, are connected better by weights than by straight-through",
            bool(both) and _mean_gap(both).above,
            say_gaps(both) if both else "not run",
        ),
    ]  # fmt: skip


def _mean(rows: Sequence[Mapping[str, float]], what: str) -> float:
    return float(np.mean([row[what] for row in rows]))


def _difference(one: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> Gap:
    """Barrier after matching at the first minus that at the second, seed by seed."""
    found = [a[MATCHED] - b[MATCHED] for a, b in zip(one, other, strict=True)]
    return Gap(float(np.mean(found)), spread(found) / sqrt(len(found)))


def _mean_gap(gaps: Mapping[Cell, Gap]) -> Gap:
    """Mean over the cells, whose networks are independent."""
    return Gap(
        float(np.mean([g.mean for g in gaps.values()])), sqrt(sum(g.error**2 for g in gaps.values())) / len(gaps)
    )


def _because(
    values: Mapping[Cell, Sequence[Mapping[str, float]]], kept: Mapping[Cell, Sequence[Mapping[str, float]]]
) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""
    said = []
    for cell, rows in values.items():
        if _mean(rows, MATCHED) > 0.2 * _mean(rows, NAIVE):
            plain, matched, one = (_mean(kept[cell], k) for k in ("plain", "matched", "one"))
            said.append(
                f"{' '.join(cell)}: the barrier that stays is {_mean(rows, MATCHED):.3f} of {_mean(rows, NAIVE):.3f}; half way the "
                f"accuracy is {matched:.1f} %, {plain:.1f} % without matching and {one:.1f} % for one network."
            )
        if _mean(rows, RATIO) > 0.25:
            said.append(f"{' '.join(cell)}: matching takes away {100 * _mean(rows, RATIO):.0f} % of the distance.")
    return said


def _points(kept: Mapping[Cell, Sequence[Mapping[str, float]]], sizes: Mapping[Cell, int]) -> list[Point]:
    """Accuracy against bytes: both networks, one of them, their plain average, and matched."""
    found = []
    names = {"both": "every network kept, probabilities averaged", "one": "one network alone", "plain": "merge/linear"}
    for cell, rows in kept.items():
        asset, size = f"networks trained apart/{cell[0]}, {cell[1]}", sizes[cell]
        for key, name in {**names, "matched": "merge/weight_matching"}.items():
            accuracies = [row[key] for row in rows]
            seconds = _mean(rows, "seconds") if key == "matched" else 0.0
            quality, varies = round(float(np.mean(accuracies)), 3), round(spread(accuracies), 3)
            found.append(
                Point(
                    name,
                    asset,
                    size * (2 if key == "both" else 1),
                    quality,
                    varies,
                    round(seconds, 5),
                    key != "matched",
                )
            )
    return found
