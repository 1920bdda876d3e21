"""P63, OPCM: do projections merge models that come one by one better than adding or averaging them?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at one size;
every seed has ten orders of the tasks, and a figure is the mean over them. OPCM, continual task arithmetic and
continual averaging keep one model as their state and are tuned over equally many settings on the same validation
examples, by the last model of three of the orders.

1. and 2. After the last model, opcm's mean accuracy beats that of tuned continual task arithmetic, and of tuned
   continual averaging: in the mean over the cells by more than two paired standard errors, and at no cell is it worse
   by more than two.
3. opcm's backward transfer is better than that of both in the mean over the cells by more than two standard errors.
4. Robust to the order: the standard deviation of opcm's accuracy over the ten orders is below one point at every cell,
   in the mean over its seeds.
5. The projection is what helps: opcm beats the same state without it (adding up, norm set to the mean norm of the task
   vectors) in the mean over the cells by more than two standard errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from claims.beds import Bed, Case, Flat, accuracy, merge8_cases, why_no_merge8
from claims.continual import Continual, Order, last, opcm, orders_of, run_way, ways
from claims.digits import digits_cases
from claims.merging import ALONE, AVERAGE, BASE, Say, add_trivial, merged_points, slope_figures
from claims.outcomes import Cell, Gap, Outcomes, better, mean_gap, say_gaps, spread
from nett.core.cards import find_card
from nett.core.claims import Check, Figure, Result
from nett.core.errors import NettError
from nett.core.standing import Point
from nett.merge.engine import run as merge

PAPER = "P63"
CLAIM = (
    "When models come one by one and only one may be kept, projecting each off the singular vectors of what is merged "
    "already gives a better model than adding or averaging, forgets less, and depends little on the order."
)
METHODS = ["merge/opcm"]

WIDTHS = (64, 256)  # at 1024 the decompositions of all orders and settings would take an hour
TRANSFER, SPREAD = ", backward transfer", ", standard deviation over the orders"
UNPROJECTED = "opcm without projection"
SUM, MEAN = "continual task arithmetic", "continual averaging"
SHORT = "norm of the merged task vector, of the one that tuned task arithmetic gives"


def unprojected(bed: Bed, order: Order, _: float) -> Iterator[Flat]:
    """Task vectors added up, and the sum brought to their mean norm."""
    total, norms = np.zeros_like(bed.base), list[float]()
    for task in order:
        delta = bed.tuned[task] - bed.base
        total = total + delta
        norms.append(float(np.linalg.norm(delta)))
        yield bed.base + total * np.float32(np.mean(norms) / np.linalg.norm(total))


NO_PROJECTION = Continual(UNPROJECTED, "no setting", (0.0,), unprojected)


def check_files(bed: Bed, order: Order, alpha: float) -> None:
    """What ``nett merge opcm`` writes is what was judged; NettError otherwise."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        base, tuned = bed.of(order, bed.size).write(folder, torch.float32)
        given, out = {"alpha": alpha}, folder / "out"
        merge(find_card("merge/opcm"), [str(t) for t in tuned], given, base=base, out=out, speak=False, threads=1)
        written = bed.read_one(out)
    memory = last(opcm(bed, order, alpha))
    off = np.linalg.norm(written - memory) / np.linalg.norm(memory - bed.base)
    if off > 1e-6:
        raise NettError(f"{bed.name}, {bed.size}: what nett writes is off by {off:.3g} from what was judged")


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment on all beds that there are."""
    skipped: dict[str, str] = {}
    why = why_no_merge8()
    if why is not None:
        skipped["merge8"] = why
    cases = chain(merge8_cases(seeds) if why is None else (), digits_cases(seeds, WIDTHS))
    return experiment(cases, skipped, progress)


def experiment(cases: Iterable[Case], skipped: dict[str, str], progress: Say) -> Result:
    """Tune, go through the orders and test; ``cases`` are used up one by one."""
    outcomes, figures, frontier = Outcomes(), list[Figure](), list[Point]()
    kept: dict[Cell, tuple[Bed, float]] = {}
    spreads: dict[Cell, list[float]] = {}
    for case in cases:
        bed, cell = case.bed, (case.bed.name, case.bed.size)
        add_trivial(outcomes, case)
        for seed, rows in case.draws.items():
            orders, said, chosen = orders_of(bed, seed), [], dict[str, float]()
            for way in (*ways(len(bed.tasks)), NO_PROJECTION):
                found = run_way(bed, way, orders, rows)
                chosen[way.name] = found.setting
                outcomes.add(bed, seed, way.name, found.final)
                outcomes.add(bed, seed, way.name + TRANSFER, found.transfer)
                note = f"{way.setting} {found.setting:.3g}" + (", the end of the grid" if found.at_edge else "")
                varies = spread(found.by_order)
                figures += [
                    Figure(*cell, seed, way.name, accuracy(found.final), note=note),
                    Figure(*cell, seed, way.name + TRANSFER, accuracy(found.transfer), "points"),
                    Figure(*cell, seed, way.name + SPREAD, varies, "points"),
                ]
                if way.name == "opcm":
                    spreads.setdefault(cell, []).append(varies)
                said.append(
                    f"{way.name} {accuracy(found.final):.2f} ({accuracy(found.transfer):+.2f}, sd {varies:.2f})"
                )
            figures.append(Figure(*cell, seed, SHORT, 100 * _length(bed, orders[0], chosen)))
            if cell not in kept:
                check_files(bed, orders[0], chosen["opcm"])
            kept[cell] = bed, chosen["opcm"]
            progress(f"{bed.name}, {bed.size}, seed {seed}: " + ", ".join(said))
    for cell, by_seed in outcomes.correct.items():
        for name in (ALONE, AVERAGE, BASE):
            figures += [Figure(*cell, seed, name, accuracy(found[name])) for seed, found in by_seed.items()]
    for other in (SUM, MEAN):
        figures += slope_figures(outcomes, "opcm", other)
    for bed, alpha in kept.values():

        def kernel(base: Flat, models: Sequence[Flat], *, alpha: float, bed: Bed = bed) -> Flat:
            return last(opcm(bed, bed.tasks, alpha))

        frontier += merged_points(outcomes, bed, {"opcm": kernel}, {"opcm": {"alpha": alpha}})
    checks = _checks(outcomes, spreads)
    because = () if all(c.holds for c in checks) else _because(outcomes, figures, [bed for bed, _ in kept.values()])
    return Result(checks, figures, frontier, skipped, because)


def _length(bed: Bed, order: Order, chosen: dict[str, float]) -> float:
    """How long opcm's change is beside that of task arithmetic at its own best scale."""
    arithmetic = chosen[SUM] * np.sum([bed.tuned[t] - bed.base for t in order], axis=0)
    return float(np.linalg.norm(last(opcm(bed, order, chosen["opcm"])) - bed.base) / np.linalg.norm(arithmetic))


def _checks(outcomes: Outcomes, spreads: dict[Cell, list[float]]) -> list[Check]:
    found = []
    for other in (SUM, MEAN):
        gaps = outcomes.gaps("opcm", other)
        rule = f"opcm beats tuned {other} in the mean over beds and sizes, and is worse at none (two standard errors)"
        found.append(Check(rule, better(gaps), say_gaps(gaps)))
    transfers = {other: outcomes.gaps("opcm" + TRANSFER, other + TRANSFER) for other in (SUM, MEAN)}
    found.append(
        Check(
            "opcm's backward transfer is better than that of both in the mean (two standard errors)",
            all(mean_gap(gaps).above for gaps in transfers.values()),
            "; ".join(f"against {other}: {say_gaps(gaps)}" for other, gaps in transfers.items()),
        )
    )
    varies = {cell: float(np.mean(values)) for cell, values in spreads.items()}
    found.append(
        Check(
            "opcm's accuracy varies over ten orders with a standard deviation below one point, at every bed and size",
            all(value < 1 for value in varies.values()),
            "; ".join(f"{bed} {size} {value:.2f}" for (bed, size), value in varies.items()),
        )
    )
    gaps = outcomes.gaps("opcm", UNPROJECTED)
    found.append(
        Check(
            "opcm beats opcm without projection in the mean (two standard errors)", mean_gap(gaps).above, say_gaps(gaps)
        )
    )
    return found


def _because(outcomes: Outcomes, figures: Sequence[Figure], beds: Sequence[Bed]) -> list[str]:
    """The causes, in the figures of this run; only what they bear out is said."""

    def values(what: str) -> list[float]:
        return [f.value for f in figures if f.what == what]

    said = [
        f"The largest model here has {max(b.base.size for b in beds):,} weights; those of the paper start near 90 million."
    ]
    length = values(SHORT)
    if max(length) < 90 or min(length) > 110:
        said.append(
            f"opcm sets the norm of what it merged to the mean norm of the task vectors; that is {min(length):.0f} to "
            f"{max(length):.0f} % of the length that validation chose for task arithmetic, and opcm has no setting for it."
        )
    plain: Gap = mean_gap(outcomes.gaps("opcm", UNPROJECTED))
    if not plain.above:
        said.append(f"The projection itself brings {plain} points over the same state without it.")
    before = {name: mean_gap(_first(outcomes, name)) for name in ("opcm", SUM, MEAN)}
    said.append(
        "Just after its own model was merged a task stands at (points, mean over the beds, against each fine-tune alone): "
        + ", ".join(f"{name} {gap}" for name, gap in before.items())
        + "; what was not learned then cannot be forgotten, which is how backward transfer flatters small scales."
    )
    return said


def _first(outcomes: Outcomes, name: str) -> dict[Cell, Gap]:
    """About what a way had learned when a model had just come, beside the fine-tune: final minus transfer minus alone."""
    found = {}
    for cell, by_seed in outcomes.correct.items():
        rows = [accuracy(o[name]) - accuracy(o[name + TRANSFER]) - accuracy(o[ALONE]) for o in by_seed.values()]
        found[cell] = Gap(float(np.mean(rows)), spread(rows) / len(rows) ** 0.5)
    return found
