"""P37, Sub-MoE: does clustering experts by their outputs and merging each cluster in one subspace keep a mixture?

The rule of the verdict (written from the paper's abstract before any number was known). A cell is a mixture of one size,
trained on code, prose and sums, at one share of its experts; right is a byte of unseen text that is the likeliest one. Each way
chooses among its settings on other unseen text, by nats a byte: Sub-MoE and M-SMoE with rows or a map for the router and
two ways to find what is alike each (Sub-MoE outputs or mean outputs; M-SMoE with and without alignment), chance among four
draws; REAP and use have nothing to choose. All keep equally many experts of equal size in every layer.

1. With 75 % of the experts Sub-MoE keeps 96 % of the accuracy of the whole, with 50 % of them 86 %: in the mean of the
   seeds, at each size (the abstract's figures, which are of zero-shot tasks).
2. It beats REAP, pruning by use, pruning by chance and M-SMoE: each in the mean over the cells by more than two
   standard errors, and nowhere is it worse by more than two.
3. Its clusters matter: it beats itself with members drawn by chance, likewise.
4. Its merge in a subspace matters: the best of the ranks 75 % and 50 % of the union beats the weighted mean of the same
   clusters, likewise. (At full rank the two are one; a test shows it.)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from claims.mixture_ways import Subject, outcomes, smaller, subjects
from claims.outcomes import Cell, Gap, Outcomes, better, say_gaps, spread
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P37"
CLAIM = (
    "Experts clustered by their outputs and merged in a common subspace keep more of a mixture than dropping experts or "
    "merging them otherwise."
)
METHODS = ["experts/sub_moe"]
KEPT = {0.75: 96.0, 0.5: 86.0}  # share of the experts -> percent of the accuracy
WHOLE, OURS, MERGED, DRAWN, THIN = (
    "whole mixture",
    "Sub-MoE",
    "M-SMoE",
    "Sub-MoE, clusters by chance",
    "Sub-MoE, lower rank",
)
RIVALS = {"REAP": "reap", "pruning by use": "frequency", "pruning by chance": "random", MERGED: "mc_smoe"}
ROUTERS = ("rows", "map")
SETTINGS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    OURS: ("sub_moe", [{"alike": a, "router": r} for a in ("outputs", "means") for r in ROUTERS]),
    "REAP": ("reap", [{}]),
    "pruning by use": ("frequency", [{}]),
    "pruning by chance": ("random", [{"seed": s} for s in range(4)]),
    MERGED: ("mc_smoe", [{"align": a, "router": r} for a in ("weights", "no") for r in ROUTERS]),
}


@dataclass
class Gathered:
    outcomes: Outcomes = field(default_factory=Outcomes)
    figures: list[Figure] = field(default_factory=list)
    bytes: dict[tuple[Cell, str], int] = field(default_factory=dict)
    seconds: dict[tuple[Cell, str], float] = field(default_factory=dict)
    nats: dict[tuple[Cell, str], list[float]] = field(default_factory=dict)
    logits: list[float] = field(default_factory=list)

    def add(self, subject: Subject, keep: float, name: str, model: Any, size: int, note: str = "") -> None:
        cell = (subject.cell[0], f"{subject.size}, {100 * keep:.0f} % of experts")
        right, nats = outcomes(model, subject.windows("test"))
        self.outcomes.correct.setdefault(cell, {}).setdefault(subject.seed, {})[name] = right
        percent = 100 * float(np.mean([r.mean() for r in right.values()]))
        self.figures.append(Figure(*cell, subject.seed, name, percent, note=note))
        self.figures.append(Figure(*cell, subject.seed, name, nats, "nats a byte"))
        self.nats.setdefault((cell, name), []).append(nats)
        self.bytes[cell, name] = size


def run(seeds: Sequence[int], progress: Callable[[str], None]) -> Result:
    """The experiment on all sizes and seeds."""
    got = Gathered()
    for subject in subjects(seeds):
        with tempfile.TemporaryDirectory() as folder:
            text = subject.text(Path(folder))
            for keep in KEPT:
                progress(_one(got, subject, keep, text))
    checks = _checks(got)
    because = () if all(c.holds for c in checks) else _because(got)
    return Result(checks, got.figures, _points(got), {}, because)


def _one(got: Gathered, subject: Subject, keep: float, text: Path) -> str:
    whole = subject.model()
    got.add(subject, keep, WHOLE, whole, sum(p.numel() * p.element_size() for p in whole.parameters()))
    validation = subject.windows("val")

    def best(method: str, settings: Sequence[dict[str, Any]]) -> tuple[Any, int, dict[str, Any], float]:
        found = []
        for one in settings:
            began = time.process_time()
            model, size = smaller(subject, method, text, keep=keep, **one)
            seconds = time.process_time() - began
            found.append((outcomes(model, validation)[1], model, size, one, seconds))
        _, model, size, one, seconds = min(found, key=lambda f: f[0])
        return model, size, one, seconds

    chosen: dict[str, Any] = {}
    cell = (subject.cell[0], f"{subject.size}, {100 * keep:.0f} % of experts")
    for name, (method, settings) in SETTINGS.items():
        model, size, one, seconds = best(method, settings)
        got.add(subject, keep, name, model, size, ", ".join(f"{k} {v}" for k, v in one.items()))
        got.seconds[cell, name] = seconds
        if name == OURS:
            chosen = one
    model, size, *_ = best("sub_moe", [{"alike": "chance", "router": chosen["router"], "seed": s} for s in range(4)])
    got.add(subject, keep, DRAWN, model, size, "the best of four draws")
    model, size, one, _ = best("sub_moe", [{**chosen, "rank": rank} for rank in (0.75, 0.5)])
    got.add(subject, keep, THIN, model, size, f"rank {one['rank']:g}")
    model, size = smaller(subject, "sub_moe", text, keep=keep, align="weights", **chosen)
    got.add(subject, keep, f"{OURS}, neurons aligned first", model, size, "beyond the paper")
    rates = {
        name: 100 * np.mean([r.mean() for r in right.values()])
        for name, right in _seed(got, cell, subject.seed).items()
    }
    return f"{' '.join(cell)}, seed {subject.seed}: " + ", ".join(f"{n} {r:.1f}" for n, r in rates.items())


def _seed(got: Gathered, cell: Cell, seed: int) -> dict[str, Any]:
    return got.outcomes.correct[cell][seed]


def _checks(got: Gathered) -> list[Check]:
    kept = {cell: got.outcomes.kept(cell, WHOLE, OURS) for cell in got.outcomes.correct}
    asked = {cell: next(v for k, v in KEPT.items() if f", {100 * k:.0f} %" in cell[1]) for cell in kept}
    found = [
        Check(
            "with 75 % of the experts 96 % of the accuracy stays, with 50 % of them 86 %, at each size",
            all(kept[c] >= asked[c] for c in kept),
            "; ".join(f"{c[1]}: {kept[c]:.1f} % (asked {asked[c]:.0f})" for c in kept),
        )
    ]
    for rival in RIVALS:
        gaps = got.outcomes.gaps(OURS, rival)
        found.append(Check(f"it beats {rival}, and is worse nowhere", better(gaps), say_gaps(gaps)))
    for other, rule in ((DRAWN, "its clusters beat clusters of the same sizes drawn by chance"),):
        gaps = got.outcomes.gaps(OURS, other)
        found.append(Check(rule, better(gaps), say_gaps(gaps)))
    gaps = got.outcomes.gaps(THIN, OURS)
    found.append(
        Check("a lower rank of the union beats the weighted mean of the same clusters", better(gaps), say_gaps(gaps))
    )
    return found


def _points(got: Gathered) -> list[Point]:
    names = {WHOLE: "the whole mixture", OURS: "experts/sub_moe", "REAP": "experts/reap", "pruning by use": "experts/frequency",
             "pruning by chance": "experts/random"}  # fmt: skip
    found = []
    for cell in got.outcomes.correct:
        for name, method in names.items():
            rates = got.outcomes.accuracies(cell, name)
            found.append(
                Point(
                    method,
                    f"mixtures/{', '.join(cell)}",
                    got.bytes[cell, name],
                    round(float(np.mean(rates)), 3),
                    round(spread(rates), 3),
                    round(got.seconds.get((cell, name), 0.0), 3),
                    trivial=name in (WHOLE, "pruning by use", "pruning by chance"),
                )
            )
    return found


def _because(got: Gathered) -> list[str]:
    """What this run's figures say of the parts that did not hold."""

    def mean(a: str, b: str) -> dict[Cell, Gap]:
        return got.outcomes.gaps(a, b)

    def span(gaps: dict[Cell, Gap]) -> str:
        return f"{min(g.mean for g in gaps.values()):+.1f} to {max(g.mean for g in gaps.values()):+.1f}"

    aligned = mean(f"{OURS}, neurons aligned first", OURS)
    notes = [f.note for f in got.figures if f.what == OURS and f.note]
    maps = sum("router map" in n for n in notes)
    return [
        f"Points of accuracy over the cells: Sub-MoE minus REAP {span(mean(OURS, 'REAP'))}, minus pruning by chance "
        f"{span(mean(OURS, 'pruning by chance'))}, minus its clusters drawn by chance {span(mean(OURS, DRAWN))}.",
        f"A lower rank is the weighted mean projected onto fewer directions: minus full rank {span(mean(THIN, OURS))}.",
        f"Neurons of experts that were trained side by side stand in no common order; put in one first, merging changes by {span(aligned)}.",
        f"The map, which gives a merged expert its members' summed weights, was chosen over the leader's row in {maps} of {len(notes)} cases.",
    ]
