"""P12, ETS: does a tree search that prices the nodes it holds need less KV cache for the same accuracy?

The task is countdown with five numbers (nett.cache.countdown): a policy with preferences of its own, exact rewards (whether the
target can still be reached) with noise of 0.3 or 0.6 added: the two beds. Sizes are widths. All ways have the settings of the
authors' code (temperature 0.2; beams and subtrees: the root of the width; lambda_c 1; lambda_s 1.5 at width 16, 1.4 at 64), all
see the same problems, and a node has the same continuations whoever asks. Problems of a seed are its own. KV is the tokens of all
leaves and of each of their ancestors once, summed over the steps of a search. Ratios are of means over a seed's problems.

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a bed at a width; errors are
paired, problem by problem.

1. ETS holds at most 1/1.8 of REBASE's KV, in the mean over the cells.
2. ETS is no less accurate than REBASE: at no cell worse by more than two standard errors, and in the mean over the cells by less
   than two points.
3. Covering clusters matters: without it (lambda_s = 0) it is less accurate, in the mean over the cells by more than two standard
   errors.
4. ETS is more accurate than beam search and than DVTS, in the mean over the cells by more than two standard errors.
5. It is no matter of a smaller width: ETS is more accurate than REBASE of the width whose KV is that of ETS (on the line between
   the widths W/2 and W; where ETS holds less than W/2 does, against W/2), in the mean over the cells by more than two standard
   errors. The trivial way to less KV is to sample less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np

import nett
from claims.outcomes import Cell, Gap, mean_gap, say_gaps, spread
from nett.cache.countdown import Countdown, problem
from nett.cache.step_clusters import clusters_of
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P12"
CLAIM = (
    "A tree search that picks its leaves by an integer programme of reward, nodes held and semantic clusters covered needs 1.8 "
    "times less KV cache than REBASE at the same accuracy."
)
METHODS = ["cache/ets"]

NOISE = (0.3, 0.6)
PROBLEMS = {16: 40, 64: 20}  # of a seed
COVERAGE = {16: 1.5, 64: 1.4}
REBASE, HALF, PLAIN, ETS = "REBASE", "REBASE at half the width", "ETS without coverage", "ETS"
LEAST = 1.8

Say = Callable[[str], None]


def ways(width: int) -> dict[str, dict[str, Any]]:
    """Name -> parameters."""
    return {
        "beam": {"by": "beam", "width": width},
        "DVTS": {"by": "dvts", "width": width},
        REBASE: {"by": "rebase", "width": width},
        HALF: {"by": "rebase", "width": width // 2},
        PLAIN: {"width": width, "coverage": 0.0},
        ETS: {"width": width, "coverage": COVERAGE[width]},
    }


class Found:
    """Of every cell, way and seed: which problems were solved, and the KV that each took."""

    def __init__(self) -> None:
        self.right: dict[Cell, dict[str, list[np.ndarray]]] = {}
        self.kv: dict[Cell, dict[str, list[np.ndarray]]] = {}
        self.clusters: dict[Cell, list[float]] = {}
        self.kept: dict[Cell, dict[str, list[float]]] = {}

    def accuracy(self, cell: Cell, way: str) -> list[float]:
        return [100 * float(r.mean()) for r in self.right[cell][way]]

    def tokens(self, cell: Cell, way: str) -> float:
        return float(np.mean([k.mean() for k in self.kv[cell][way]]))

    def gap(self, cell: Cell, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Gap:
        """Points; problems of the seeds are different ones, so they count together."""
        apart = 100 * np.concatenate([a - b for a, b in zip(ours, theirs, strict=True)])
        return Gap(float(apart.mean()), float(apart.std(ddof=1) / sqrt(len(apart))))

    def gaps(self, a: str, b: str) -> dict[Cell, Gap]:
        return {c: self.gap(c, of[a], of[b]) for c, of in self.right.items()}

    def at_equal_kv(self, cell: Cell) -> Gap:
        """ETS minus REBASE at the KV of ETS, on the line between half the width and the width."""
        low, high, mine = (self.tokens(cell, w) for w in (HALF, REBASE, ETS))
        part = min(1.0, max(0.0, (mine - low) / (high - low)))
        rows = self.right[cell]
        between = [(1 - part) * a + part * b for a, b in zip(rows[HALF], rows[REBASE], strict=True)]
        return self.gap(cell, rows[ETS], between)


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment; it needs nothing but nett."""
    found, figures, points = Found(), list[Figure](), list[Point]()
    for width in PROBLEMS:
        for noise in NOISE:
            cell = (f"countdown, noise {noise}", f"width {width}")
            for seed in seeds:
                _seed(cell, width, noise, seed, found)
                for way in ways(width):
                    figures += _figures(cell, seed, way, found)
                said = ", ".join(f"{w} {found.accuracy(cell, w)[-1]:.1f}" for w in ways(width))
                progress(f"{' '.join(cell)} seed {seed}: {said}; {_ratio(found, cell, ETS):.2f} times less KV")
            for way, name in {ETS: "cache/ets", REBASE: "REBASE", "beam": "beam search", "DVTS": "DVTS"}.items():
                values = found.accuracy(cell, way)
                points.append(Point(name, f"search/{' '.join(cell)}", found.tokens(cell, way), float(np.mean(values)),
                                    spread(values), 0.0, trivial=way != ETS))  # fmt: skip
    return Result(_checks(found), figures, points, {}, _because(found))


def _seed(cell: Cell, width: int, noise: float, seed: int, found: Found) -> None:
    right: dict[str, list[float]] = {w: [] for w in ways(width)}
    kv: dict[str, list[int]] = {w: [] for w in ways(width)}
    shares = []
    for i in range(PROBLEMS[width]):
        numbers, target = problem(seed + 1, i)
        task = Countdown(numbers, target, noise=noise, seed=seed)
        for way, how in ways(width).items():
            answer = nett.cache.ets(task.prompt, task.generate, task.reward, seed=seed, **how)
            right[way].append(float(answer.answer == str(target)))
            kv[way].append(answer.ledger["kv_tokens"])
            later = answer.ledger["kept"][1:] or [0]  # the first is the root
            found.kept.setdefault(cell, {}).setdefault(way, []).append(float(np.mean(later)))
        first = task.generate(_root(task), width, np.random.default_rng([seed, i]))
        shares.append((max(clusters_of([s.text for s in first], 0.05)) + 1) / width)
    for way in right:
        found.right.setdefault(cell, {}).setdefault(way, []).append(np.array(right[way]))
        found.kv.setdefault(cell, {}).setdefault(way, []).append(np.array(kv[way], np.float64))
    found.clusters.setdefault(cell, []).append(float(np.mean(shares)))


def _root(task: Countdown) -> Any:
    from nett.cache.search_tree import Node

    return Node(None, task.prompt)


def _figures(cell: Cell, seed: int, way: str, found: Found) -> list[Figure]:
    kv = float(found.kv[cell][way][-1].mean())
    return [
        Figure(*cell, seed, way, found.accuracy(cell, way)[-1], "% solved"),
        Figure(*cell, seed, f"{way}, KV of a search", kv, "tokens"),
    ]


def _ratio(found: Found, cell: Cell, way: str) -> float:
    return found.tokens(cell, REBASE) / found.tokens(cell, way)


def _checks(found: Found) -> list[Check]:
    ratios = {c: _ratio(found, c, ETS) for c in found.right}
    said = "; ".join(f"{' '.join(c)} {r:.2f}" for c, r in ratios.items())
    against, plain = found.gaps(ETS, REBASE), found.gaps(ETS, PLAIN)
    rivals = {w: found.gaps(ETS, w) for w in ("beam", "DVTS")}
    equal = {c: found.at_equal_kv(c) for c in found.right}
    mean = float(np.mean(list(ratios.values())))
    return [
        Check(f"ETS holds {LEAST} times less KV than REBASE", mean >= LEAST, f"mean {mean:.2f}; {said}"),
        Check(
            "ETS is no less accurate than REBASE (two standard errors at every cell; two points in the mean)",
            not any(g.below for g in against.values()) and mean_gap(against).mean > -2,
            say_gaps(against),
        ),
        Check(
            "without coverage it is less accurate (mean, two standard errors)", mean_gap(plain).above, say_gaps(plain)
        ),
        Check(
            "ETS is more accurate than beam search and DVTS (mean, two standard errors)",
            all(mean_gap(g).above for g in rivals.values()),
            "; ".join(f"{w}: {say_gaps(g)}" for w, g in rivals.items()),
        ),
        Check(
            "ETS is more accurate than REBASE of a smaller width at equal KV (mean, two standard errors)",
            mean_gap(equal).above,
            say_gaps(equal),
        ),
    ]


def _because(found: Found) -> list[str]:
    said = []
    ratios = [_ratio(found, c, ETS) for c in found.right]
    if np.mean(ratios) < LEAST:
        shares = [float(np.mean(v)) for v in found.clusters.values()]
        said.append(
            f"The programme drops little that REBASE continues. Leaves continued at a step: {_kept(found, REBASE)} by REBASE, "
            f"{_kept(found, PLAIN)} without coverage, {_kept(found, ETS)} with it. The leaves of a first step fall into "
            f"{min(shares):.2f} to {max(shares):.2f} clusters a leaf; each that is covered adds lambda_s over their number, which is "
            "more than the price of the nodes that one leaf needs. KV against REBASE's: without coverage "
            f"{_ratios(found, PLAIN)} times less, with it {_ratios(found, ETS)}."
        )
    return said


def _kept(found: Found, way: str) -> str:
    each = [float(np.mean(of[way])) for of in found.kept.values()]
    return f"{min(each):.1f} to {max(each):.1f}"


def _ratios(found: Found, way: str) -> str:
    each = [_ratio(found, c, way) for c in found.right]
    return f"{min(each):.2f} to {max(each):.2f}"
