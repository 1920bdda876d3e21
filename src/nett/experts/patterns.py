"""Stored task patterns: for each task which experts it wants most, small enough to keep hundreds.

As the paper stores them: the scores of the first mixture, by which a query is compared, and of every mixture only the
order of its experts, from which any number of them can be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import ProofFailed, Refused, UsageError, did_you_mean
from nett.core.jsonable import jsonable
from nett.experts.choosing import highest, uniform_counts
from nett.experts.protocol import Layer
from nett.experts.task_scores import Measure

NAME = "nett-patterns.json"


@final
@dataclass(frozen=True)
class Patterns:
    """``tasks``: their names; ``keys``: [tasks, E] scores in the first mixture; ``orders``: for each mixture [tasks, E], its
    experts from the most to the least wanted. ``measure``: what was scored; ``keep``: share that is kept unless another
    is asked for; ``model``: reference of the model that it is about."""

    tasks: Sequence[str]
    keys: Array
    orders: Sequence[Array]
    measure: Measure
    keep: float
    model: str

    def number(self, task: str) -> int:
        """Which task is called so; UsageError with the names otherwise."""
        if task in self.tasks:
            return list(self.tasks).index(task)
        near = did_you_mean(task, self.tasks)
        raise UsageError(f"no stored task is called {task!r}.{near}", hint=f"Stored: {', '.join(self.tasks)}")

    def distances(self, scores: Any) -> dict[str, float]:
        """Euclidean distance of a query's scores [E] in the first mixture to each task's, the nearest first."""
        gaps = np.linalg.norm(self.keys - np.asarray(scores, np.float64), axis=1)
        return {self.tasks[i]: float(gaps[i]) for i in np.argsort(gaps, kind="stable")}

    def kept(self, task: str, layers: Sequence[Layer], keep: float | None = None) -> list[list[int]]:
        """The experts of each mixture that stay for a task, in ascending order of their numbers."""
        at, counts = self.number(task), uniform_counts(layers, self.keep if keep is None else keep)
        found = []
        for layer, orders, count in zip(layers, self.orders, counts, strict=True):
            rank = np.empty(layer.count)
            rank[orders[at]] = np.arange(layer.count)
            found.append(highest(layer, -rank, count))
        return found

    def as_json(self) -> dict[str, Any]:
        made = {
            "model": self.model,
            "keep": self.keep,
            "measure": vars(self.measure),
            "tasks": list(self.tasks),
            "keys": self.keys.tolist(),
            "orders": [o.tolist() for o in self.orders],
        }
        return dict(jsonable(made))


def patterns_of(tasks: Sequence[str], scores: Sequence[Any], measure: Measure, keep: float, model: str) -> Patterns:
    """Patterns of the scores [tasks, E] of each mixture; ties go to the lower number."""
    arrays = [np.asarray(s, np.float64) for s in scores]
    orders = [np.argsort(-a, axis=1, kind="stable") for a in arrays]
    return Patterns(list(tasks), arrays[0], orders, measure, keep, model)


def read_patterns(folder: Path) -> Patterns:
    """The patterns of an output of nett experts premoe; Refused where there are none, ProofFailed where they are damaged."""
    file = Path(folder) / NAME
    if not file.is_file():
        hint = "nett experts premoe MODEL --task NAME=FILE --out DIR writes them."
        raise Refused(f"holds no task patterns ({NAME})", where=folder, hint=hint)
    try:
        said: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        keys = np.asarray(said["keys"], np.float64)
        orders = [np.asarray(o, np.int64) for o in said["orders"]]
        tasks = [str(t) for t in said["tasks"]]
        measure = Measure(**said["measure"])
        good = keys.shape == orders[0].shape == (len(tasks), keys.shape[1]) and all(
            len(o) == len(tasks) and bool((np.sort(o, axis=1) == np.arange(o.shape[1])).all()) for o in orders
        )
        made = Patterns(tasks, keys, orders, measure, float(said["keep"]), str(said["model"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ProofFailed(f"are no task patterns: {type(error).__name__} {error}", where=file) from error
    if not good:
        raise ProofFailed("are no task patterns: their orders are none of all experts", where=file)
    return made


def check_model(patterns: Patterns, layers: Sequence[Layer], where: Any) -> None:
    """Refused where the patterns are of a model with other mixtures."""
    theirs, ours = [o.shape[1] for o in patterns.orders], [layer.count for layer in layers]
    if theirs != ours:
        raise Refused(f"has mixtures of {ours} experts, the task patterns are of {theirs}", where=where)
