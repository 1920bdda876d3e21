"""P16, PLeaS: does keeping units apart that do not match, and solving for the weights, give more at equal compute?

Two networks from different starting points, each trained on a task of its own with its own head; one trunk for both is
wanted. Budgets count FLOPs, 1 for one network and 2 for both. No way sees labels, all re-estimate BatchNorm's statistics on
the same inputs, and each is tuned on validation examples over at least four settings, at budget 1.2; test examples are
seen by the setting that won. Weight matching is the search of Git Re-Basin on the trunk; partial merging is ours without
least squares.

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at one size.
"Better" is: in the mean over the cells by more than two standard errors, and at no cell worse by more than two.

1. At each of the budgets 1.0, 1.2, 1.55 and 1.8, PLeaS is better than partial merging at the same budget.
2. At budget 1.0, PLeaS is better than the plain average of the trunks, and than weight matching.
3. At budget 1.8, PLeaS is better than PLeaS at budget 1.0.
4. At some cell and budget, PLeaS beats the best of the others at that budget by 15 points ("up to 15 points").
5. At budget 2.0 the result answers as the two networks do, to 0.1 points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import nett
from claims.beds import accuracy
from claims.outcomes import Cell, Outcomes, better, mean_gap, say_gaps, spread
from claims.pairs import Pair, all_pairs
from nett.core.claims import Check, Figure, Result
from nett.core.network import Network
from nett.core.standing import Point
from nett.core.symmetry.fitting import fitted

PAPER = "P16"
CLAIM = (
    "Merging two networks only where their units match, and solving for the weights layer by layer, gives up to 15 points "
    "more accuracy at equal compute than merging them whole or partially."
)
METHODS = ["merge/pleas"]

BUDGETS = (1.0, 1.2, 1.55, 1.8, 2.0)
TUNED_AT = 1.2
ALONE, AVERAGE, MATCHING, PARTIAL, PLEAS = (
    "both networks",
    "plain average",
    "weight matching",
    "partial merging",
    "PLeaS",
)
NOISE, OTHER = "PLeaS on noise", "PLeaS on the first task's inputs"

Say = Callable[[str], None]
Settings = Mapping[str, Any]
MATCHES: list[Settings] = [{"match": m, "score": s} for m in ("activations", "weights") for s in ("distance", "inner")]
SEEDS: list[Settings] = [{"match": "weights", "seed": s} for s in range(4)]
SHARES: list[Settings] = [{"share": s} for s in (0.3, 0.4, 0.5, 0.6, 0.7)]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    outcomes, figures, points = Outcomes(), list[Figure](), dict[Cell, list[Point]]()
    for number, bed in enumerate(all_pairs(seeds, skipped)):
        seed = seeds[number % len(seeds)]
        points[bed.name, bed.size] = _one_case(bed, seed, outcomes, figures)
        said = [f"{n} {outcomes.accuracies((bed.name, bed.size), n)[-1]:.1f}" for n in (ALONE, AVERAGE, MATCHING)]
        for way in (PARTIAL, PLEAS):
            shares = (outcomes.accuracies((bed.name, bed.size), at(way, b))[-1] for b in BUDGETS)
            said.append(f"{way} " + " ".join(f"{a:.1f}" for a in shares))
        progress(f"{bed.name}, {bed.size}, seed {seed}: {', '.join(said)}")
    for cell, by_seed in outcomes.correct.items():
        for seed, found in by_seed.items():
            figures += [Figure(*cell, seed, name, accuracy(correct)) for name, correct in found.items()]
    for budget in BUDGETS[:-1]:
        for bed_name, slopes in outcomes.slopes(at(PLEAS, budget), at(PARTIAL, budget)).items():
            what = f"PLeaS minus partial merging at {budget}, change when the size doubles"
            figures += [Figure(bed_name, "all sizes", seeds[k], what, v) for k, v in enumerate(slopes)]
    frontier = [p for cell, made in points.items() for p in _with_quality(outcomes, cell, made)]
    checks = _checks(outcomes)
    return Result(checks, figures, frontier, skipped, () if all(c.holds for c in checks) else _because(outcomes))


def at(way: str, budget: float) -> str:
    return f"{way} at {budget}"


def heads_of(bed: Pair, found: Any) -> list[Any]:
    """The result as two modules, one a head."""
    from safetensors.numpy import load

    second = {**found.tensors, **load(found.files["head-2.safetensors"])}
    return [fitted(bed.network.module, t).eval() for t in (found.tensors, second)]


def merged(bed: Pair, **words: Any) -> list[Any]:
    return heads_of(bed, nett.merge.pleas(bed.models, bed.symmetry, bed.network, heads="head", **words))


def averaged(bed: Pair, share: float) -> list[Any]:
    """The trunks' average, each with its own head."""
    one, two = bed.models
    trunk = {n: ((1 - share) * t + share * two[n]).astype(t.dtype) for n, t in one.items()}
    heads = [{n: m[n] for n in m if n.startswith("head.")} for m in bed.models]
    return [fitted(bed.network.module, bed.network.restated(trunk | h)).eval() for h in heads]


def _one_case(bed: Pair, seed: int, outcomes: Outcomes, figures: list[Figure]) -> list[Point]:
    alone = [fitted(bed.network.module, m).eval() for m in bed.models]
    asset = f"checkpoints/{bed.name}, {bed.size}"
    size = float(sum(t.nbytes for t in bed.models[0].values()))
    points = [Point("both networks kept", asset, 2 * size, 0.0, 0.0, 0.0, True)]
    outcomes.add(bed, seed, ALONE, bed.correct(alone, "test"))  # type: ignore[arg-type]

    def note(name: str, modules: Sequence[Any], settings: Settings) -> None:
        outcomes.add(bed, seed, name, bed.correct(modules, "test"))  # type: ignore[arg-type]
        text = ", ".join(f"{k} {v}" for k, v in settings.items())
        figures.append(Figure(bed.name, bed.size, seed, f"{name}, chosen", 0.0, "", text))

    def best(make: Callable[..., list[Any]], grid: Sequence[Settings], **fixed: Any) -> Settings:
        scores = [accuracy(bed.correct(make(bed, **fixed, **s), "val")) for s in grid]
        return grid[int(np.argmax(scores))]

    chosen = best(averaged, SHARES)
    note(AVERAGE, averaged(bed, **chosen), chosen)
    points.append(Point("merge/linear", asset, size, 0.0, 0.0, 0.0, True))
    chosen = best(merged, SEEDS, ratio=0.0, squares=False)
    note(MATCHING, merged(bed, ratio=0.0, squares=False, **chosen), chosen)
    points.append(Point("merge/weight_matching", asset, size, 0.0, 0.0, 0.0, False))
    for way, squares in ((PARTIAL, False), (PLEAS, True)):
        chosen = best(merged, MATCHES, budget=TUNED_AT, squares=squares)
        for budget in BUDGETS:
            began = time.perf_counter()
            modules = merged(bed, budget=budget, squares=squares, **chosen)
            took = time.perf_counter() - began
            note(at(way, budget), modules, chosen)
            if squares and budget < 2:
                held = sum(t.numel() * t.element_size() for t in modules[0].state_dict().values())
                points.append(
                    Point(f"merge/pleas --budget {budget}", asset, float(held), 0.0, 0.0, round(took, 3), False)
                )
    _other_inputs(bed, seed, chosen, outcomes)
    return points


def _other_inputs(bed: Pair, seed: int, chosen: Settings, outcomes: Outcomes) -> None:
    """PLeaS that saw noise, or one task only; statistics re-estimated on the same inputs as for all."""
    noise = np.random.default_rng(seed).normal(size=bed.network.inputs.shape).astype(np.float32)
    first = bed.data[bed.tasks[0]]["train"][0][: len(noise)]
    for name, inputs in ((NOISE, noise), (OTHER, first)):
        seen = Network(bed.network.module, inputs, batch=bed.network.batch)
        found = nett.merge.pleas(
            bed.models, bed.symmetry, seen, heads="head", budget=TUNED_AT, statistics=False, **chosen
        )
        modules = []
        for module in heads_of(bed, found):
            tensors = {n: t.numpy() for n, t in module.state_dict().items() if t.is_floating_point()}
            modules.append(fitted(module, bed.network.restated(tensors)).eval())
        outcomes.add(bed, seed, f"{name} at {TUNED_AT}", bed.correct(modules, "test"))  # type: ignore[arg-type]


def _with_quality(outcomes: Outcomes, cell: Cell, points: Sequence[Point]) -> list[Point]:
    names = [ALONE, AVERAGE, MATCHING, *(at(PLEAS, b) for b in BUDGETS[:-1])]
    found = []
    for name, point in zip(names, points, strict=True):
        values = outcomes.accuracies(cell, name)
        quality, varies = round(float(np.mean(values)), 3), round(spread(values), 3)
        method = point.method.split(" --")[0]
        found.append(Point(method, point.asset, point.bytes, quality, varies, point.seconds, point.trivial))
    return found


def _checks(outcomes: Outcomes) -> list[Check]:
    checks = []
    for budget in BUDGETS[:-1]:
        gaps = outcomes.gaps(at(PLEAS, budget), at(PARTIAL, budget))
        checks.append(Check(f"PLeaS is better than partial merging at budget {budget}", better(gaps), say_gaps(gaps)))
    for other in (AVERAGE, MATCHING):
        gaps = outcomes.gaps(at(PLEAS, 1.0), other)
        checks.append(Check(f"PLeaS at budget 1.0 is better than the {other}", better(gaps), say_gaps(gaps)))
    gaps = outcomes.gaps(at(PLEAS, 1.8), at(PLEAS, 1.0))
    checks.append(Check("PLeaS is better at budget 1.8 than at 1.0", better(gaps), say_gaps(gaps)))
    largest = max(_leads(outcomes), key=lambda lead: lead[0])
    checks.append(
        Check(
            "at some cell and budget PLeaS beats the best of the others at that budget by 15 points",
            largest[0] >= 15,
            f"the largest lead is {largest[0]:+.2f}, {' '.join(largest[1])} at {largest[2]}",
        )
    )
    both = outcomes.gaps(at(PLEAS, 2.0), ALONE)
    checks.append(
        Check(
            "at budget 2.0 the result answers as the two networks do, to 0.1 points",
            all(abs(g.mean) <= 0.1 for g in both.values()),
            say_gaps(both),
        )
    )
    return checks


def _leads(outcomes: Outcomes) -> list[tuple[float, Cell, float]]:
    """(lead over the best of the others, cell, budget); what costs one network stays available at any budget."""
    found = []
    for cell in outcomes.correct:
        for budget in BUDGETS[:-1]:
            others = [AVERAGE, MATCHING, *(at(PARTIAL, b) for b in BUDGETS if b <= budget)]
            rival = max(float(np.mean(outcomes.accuracies(cell, n))) for n in others)
            found.append((float(np.mean(outcomes.accuracies(cell, at(PLEAS, budget)))) - rival, cell, budget))
    return found


def _because(outcomes: Outcomes) -> list[str]:
    """The causes, in the figures of this run."""
    said = []
    lost = {b: mean_gap(outcomes.gaps(at(PARTIAL, b), ALONE)).mean for b in BUDGETS[:-1]}
    left = {b: mean_gap(outcomes.gaps(at(PLEAS, b), ALONE)).mean for b in BUDGETS[:-1]}
    text = ", ".join(f"{-lost[b]:.1f} and {-left[b]:.1f} at {b}" for b in lost)
    said.append(f"Points lost to the two networks by partial merging and by PLeaS, mean over the cells: {text}.")
    if max(-v for v in lost.values()) < 15:
        said.append("No way loses 15 points here, so none can be 15 points better: these networks are small and alike.")
    return said
