"""Merging models that come one by one: ways that keep one model as their state, on a bed, in many orders.

A :class:`Stream` gives the merged model after each step. Accuracies are per example, in the mean over the orders, so
that ways are compared example by example: of the last model on every task, and backward transfer, which is what a
task has gained (or lost) from when its model had just been merged to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from claims.beds import Bed, Flat, Rows, accuracy
from claims.outcomes import Correct
from nett.core.layers import is_embedding
from nett.merge.opcm import with_projected

ORDERS, TUNED_ON = 10, 3  # orders of the tasks; the first few of them choose the setting, by validation
BUDGET = 20  # settings that each way may try

Order = Sequence[str]
Stream = Callable[[Bed, Order, float], Iterator[Flat]]


@dataclass(frozen=True)
class Continual:
    """A way to merge one model after another: its one setting's name and grid."""

    name: str
    setting: str
    grid: tuple[float, ...]
    stream: Stream


@dataclass(frozen=True)
class Run:
    """What a way came to at its best setting: per-example means over the orders, accuracy of each order, setting."""

    setting: float
    at_edge: bool
    final: Correct
    transfer: Correct
    by_order: tuple[float, ...]


def opcm(bed: Bed, order: Order, alpha: float) -> Iterator[Flat]:
    """P63, algorithm 1, with nett's kernel for the matrices; the model after each step."""
    norms, merged = list[float](), np.zeros_like(bed.base)
    for task in order:
        delta = bed.tuned[task] - bed.base
        norms.append(float(np.linalg.norm(delta.astype(np.float64))))
        if len(norms) == 1:
            merged = delta.copy()
        else:
            at = 0
            for name, shape in bed.layout.items():
                part = slice(at, at := at + int(np.prod(shape)))
                if len(shape) == 2 and not is_embedding(name):
                    whole = with_projected(merged[part].reshape(shape), delta[part].reshape(shape), alpha)
                    merged[part] = whole.ravel()
                else:
                    merged[part] += delta[part]
        factor = np.mean(norms) / np.linalg.norm(merged.astype(np.float64))
        yield bed.base + merged * np.float32(factor)


def arithmetic(bed: Bed, order: Order, scale: float) -> Iterator[Flat]:
    """Continual task arithmetic: each model adds its task vector times a scale."""
    total = np.zeros_like(bed.base)
    for task in order:
        total = total + (bed.tuned[task] - bed.base)
        yield bed.base + np.float32(scale) * total


def averaging(bed: Bed, order: Order, least: float) -> Iterator[Flat]:
    """A running average in which the newest model weighs 1/t, and never less than ``least``; 0 is the plain average."""
    merged = bed.base
    for t, task in enumerate(order, start=1):
        merged = merged + np.float32(max(1 / t, least)) * (bed.tuned[task] - merged)
        yield merged


def ways(tasks: int) -> tuple[Continual, ...]:
    """The three, each with ``BUDGET`` settings; scales as in the other claims, up to five times the average's."""
    return (
        Continual("opcm", "alpha", tuple(k / (BUDGET - 1) for k in range(BUDGET)), opcm),
        Continual(
            "continual task arithmetic", "scale", tuple(5 / tasks * (k + 1) / BUDGET for k in range(BUDGET)), arithmetic
        ),
        Continual("continual averaging", "least weight", tuple(k / BUDGET for k in range(BUDGET)), averaging),
    )


def orders_of(bed: Bed, seed: int) -> list[Order]:
    """The orders of one seed."""
    rng = np.random.default_rng([seed, 63])
    return [[bed.tasks[i] for i in rng.permutation(len(bed.tasks))] for _ in range(ORDERS)]


def last(stream: Iterator[Flat]) -> Flat:
    """The model at the end."""
    *_, found = stream
    return found


def choose(bed: Bed, way: Continual, orders: Sequence[Order], rows: Rows) -> float:
    """The setting with the best mean accuracy on validation, of the last model over the first orders; the first of equals."""
    drawn = {t: {"val": (bed.data[t]["val"][0][rows[t]], bed.data[t]["val"][1][rows[t]])} for t in bed.tasks}
    judge = replace(bed, data=drawn)
    found = []
    for value in way.grid:
        models = [last(way.stream(bed, order, value)) for order in orders[:TUNED_ON]]
        found.append(np.mean([accuracy(judge.all_correct(model, "val")) for model in models]))
    return way.grid[int(np.argmax(found))]


def run_way(bed: Bed, way: Continual, orders: Sequence[Order], rows: Rows) -> Run:
    """Tune a way, and go through all orders with its best setting on the test examples."""
    value = choose(bed, way, orders, rows)
    final = {task: list[np.ndarray]() for task in bed.tasks}
    transfer = {task: list[np.ndarray]() for task in bed.tasks}
    by_order = []
    for order in orders:
        then: dict[str, np.ndarray] = {}
        model = bed.base
        for task, model in zip(order, way.stream(bed, order, value), strict=True):
            then[task] = bed.correct(model, task, "test").astype(float)
        now = bed.all_correct(model, "test")
        by_order.append(accuracy(now))
        for task in bed.tasks:
            final[task].append(now[task].astype(float))
            if task != order[-1]:
                transfer[task].append(now[task] - then[task])
    return Run(value, value == way.grid[-1], _means(final), _means(transfer), tuple(by_order))


def _means(found: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Per task and example the mean over the orders (0 for a task that came last in all of them)."""
    return {task: np.mean(rows, axis=0) if rows else np.zeros(1) for task, rows in found.items()}
