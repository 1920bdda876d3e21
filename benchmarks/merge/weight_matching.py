"""Weight matching of two networks with three hidden layers of 1024 units, against the loop as the paper states it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmarks.measure import in_turn
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from nett.core.bench import Figure, Outcome
from nett.core.dtypes import Array
from nett.core.symmetry import Group, Place, Symmetry
from nett.core.symmetry.matching import align

TITLE = "weight matching of two MLPs, three hidden layers of 1024 units"
WIDTHS, PICO = (784, 1024, 1024, 1024, 10), (12, 16, 16, 16, 4)
Say = Callable[[str], None]
Tensors = dict[str, Array]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    widths = PICO if pico else WIDTHS
    symmetry = _symmetry(widths)
    rng = np.random.default_rng(0)
    first = {n: rng.normal(size=s).astype(np.float32) for n, s in symmetry.shapes.items()}
    apart = {n: rng.normal(size=s).astype(np.float32) for n, s in symmetry.shapes.items()}
    copy = symmetry.apply(first, symmetry.random(rng))
    near = {n: t + np.float32(0.5) * np.asarray(rng.normal(size=t.shape), np.float32) for n, t in copy.items()}
    figures, times = [], 1 if pico else 3
    for what, other in (("unrelated weights", apart), ("a permuted copy with noise", near)):

        def ours(other: Tensors = other) -> float:
            return _seconds(lambda: align(first, other, symmetry))

        def plain(other: Tensors = other) -> float:
            return _seconds(lambda: _loop(first, other, len(widths) - 2))

        told = in_turn({"nett": (times, ours), "plain loop": (times, plain)}, "CPU s", say)
        found = {name: replace(series, command=_COMMANDS[name]) for name, series in told.items()}
        figures.append(Figure(f"CPU seconds, {what}", found["nett"], bar=5.0, note="on one thread"))
        figures.append(Figure(f"CPU time, {what}", found["nett"], found["plain loop"], note=_PLAIN))
        one, two = align(first, other, symmetry).objective[-1], _loop(first, other, len(widths) - 2)
        say(f"{what}: inner product {one:.6g}, that of the plain loop {two:.6g}")
    return Outcome(figures)


_COMMANDS = {
    "nett": "nett.core.symmetry.matching.align, one thread",
    "plain loop": "_loop of benchmarks/merge/weight_matching.py, one thread",
}
_PLAIN = "the plain loop permutes copies of the tensors and goes over every layer until a whole sweep gains nothing"


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds on one thread, so that other work on the machine does not make threads wait for each other."""
    with threadpool_limits(1):
        began = time.process_time()
        work()
        return time.process_time() - began


def _symmetry(widths: tuple[int, ...]) -> Symmetry:
    groups, shapes = [], dict[str, tuple[int, ...]]()
    for i in range(len(widths) - 1):
        shapes |= {f"{i}.weight": (widths[i + 1], widths[i]), f"{i}.bias": (widths[i + 1],)}
        if i < len(widths) - 2:
            units = np.arange(widths[i + 1])[:, None]
            places = (
                Place(f"{i}.weight", 0, units, "producer"),
                Place(f"{i}.bias", 0, units, "producer"),
                Place(f"{i + 1}.weight", 1, units, "consumer"),
            )
            groups.append(Group(str(i), "neuron", places))
    return Symmetry(tuple(groups), shapes)


def _loop(first: Tensors, other: Tensors, hidden: int) -> float:
    """Ainsworth et al. 2023, algorithm 1, as it is written down. Returns the inner product that it ends at."""
    rng = np.random.default_rng(0)
    orders = [np.arange(first[f"{i}.weight"].shape[0]) for i in range(hidden)]

    def placed(i: int) -> Array:
        weight = other[f"{i}.weight"]
        weight = weight[orders[i]] if i < hidden else weight
        return weight[:, orders[i - 1]] if i else weight

    moved = True
    while moved:
        moved = False
        for i in rng.permutation(hidden):
            rows = first[f"{i}.weight"] @ placed(i).T
            columns = first[f"{i + 1}.weight"].T @ placed(i + 1)
            alike = rows + columns + np.outer(first[f"{i}.bias"], other[f"{i}.bias"][orders[i]])
            best = linear_sum_assignment(alike, maximize=True)[1]
            if alike[np.arange(len(best)), best].sum() > np.trace(alike) * (1 + 1e-6):
                orders[i], moved = orders[i][best], True
    total = sum(np.vdot(first[f"{i}.weight"], placed(i)) for i in range(hidden + 1))
    return float(total + sum(np.vdot(first[f"{i}.bias"], other[f"{i}.bias"][orders[i]]) for i in range(hidden)))
