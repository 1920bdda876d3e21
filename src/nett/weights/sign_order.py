"""In which order the layers of a stack get their blocks: those first that are worth most."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.blocks import Skeleton, Walk
from nett.core.blocks.skeleton import put
from nett.core.checkpoint import Checkpoint
from nett.core.dtypes import Array
from nett.core.progress import report
from nett.core.quality import likelihoods
from nett.core.windows import Windows
from nett.weights.sign_stack import Layer, Plan, StackCheckpoint

WINDOWS, TOKENS = 32, 2048  # at most so many windows and tokens tell what a block is worth
_POINTS, _JUDGED = 6, 8  # budgets of the curve, windows that each is judged by


@final
@dataclass(frozen=True)
class Found:
    """An order, and how it was found."""

    order: tuple[int, ...]
    said: str


def by_error(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Level by level; within one, those first whose relative error falls most with their next block."""
    found: list[int] = []
    for level in range(1, max((layer.blocks for layer in layers), default=0)):
        here = [i for i, layer in enumerate(layers) if level < layer.blocks]
        falls = [layers[i].errors[level + 1] - layers[i].errors[level] for i in here]
        found += [here[i] for i in np.argsort(falls, kind="stable")]
    return tuple(found)


def by_perplexity(
    skeleton: Skeleton, plan: Plan, sources: Sequence[Checkpoint], windows: Windows, evaluations: int
) -> Found:
    """Level by level; within one, those first that lower the perplexity most when they alone are raised.

    As many levels are measured as ``evaluations`` allow, the lowest, the rest spread over the others evenly.
    """
    layers, order = plan.layers, list(plan.order)
    last = max((layer.blocks for layer in layers), default=1) - 1
    measured = _levels(last, evaluations // max(1, len(layers)))
    few = windows.ids[: max(1, min(WINDOWS, TOKENS // windows.ids.shape[1]))]
    found: list[int] = []
    known: list[int] | None = None
    report.begin("ordering", len(measured) * len(layers), "evaluations")
    at = 0
    for level in range(1, last + 1):
        here = [i for i, layer in enumerate(layers) if level < layer.blocks]
        given = order[at : at + len(here)]
        at += len(here)
        if level in measured:
            worth = _worth(skeleton, plan, sources, few, level)
            known = sorted(here, key=lambda i: (worth[i], i))
        found += given if known is None else [i for i in known if i in set(here)]
    report.end()
    said = f"{len(measured)} of {last} levels were ordered by the perplexity of {few.size:,} tokens"
    rest = "the others by the nearest below" if measured else "the others by the layers' errors"
    return Found(tuple(found), said + ("" if len(measured) == last else f", {rest}: --evaluations allows no more"))


def evaluations_of(layers: int, parameters: Mapping[str, Any]) -> int:
    """How often the model will be run to find the order."""
    if parameters["order"] != "perplexity":
        return 0
    return layers * len(_levels(parameters["blocks"] - 1, parameters["evaluations"] // max(1, layers)))


def _levels(last: int, count: int) -> list[int]:
    if count >= last:
        return list(range(1, last + 1))
    return sorted({round(x) for x in np.geomspace(1, last, count)} if count else set())


def _worth(skeleton: Skeleton, plan: Plan, sources: Sequence[Checkpoint], ids: Array, level: int) -> dict[int, float]:
    """Layer -> mean negative log likelihood when it alone has a block more than ``level``. NaN counts as the worst."""
    import torch

    place = skeleton.checkpoint.path
    taken = sum(min(level, layer.blocks) - 1 for layer in plan.layers)
    # An order that has all layers at one level after ``taken`` blocks; within levels any will do.
    below, above = (StackCheckpoint(place, plan, sources, t) for t in (taken, _raised(plan, level)))
    model = _beside(below, skeleton)
    numbers = {layer.module: i for i, layer in enumerate(plan.layers)}
    worth: dict[int, float] = {}
    walk = Walk(model, torch.from_numpy(ids))
    with _resident(model):
        for block, module in enumerate(model.blocks):
            for linear in model.linears(block):
                number = numbers.get(linear.module)
                if number is None or level >= plan.layers[number].blocks:
                    continue
                kept = module.get_submodule(linear.name).weight.data
                raised = torch.from_numpy(above.values(linear.weight)).view(kept.shape).to(kept.device)
                put(module, f"{linear.name}.weight", raised)
                branch = _branch(walk)
                for later in model.blocks[block:]:
                    branch.run(later)
                mean = float(likelihoods(branch).mean())
                worth[number] = mean if mean == mean else np.inf
                put(module, f"{linear.name}.weight", kept)
                report.step(1)
            walk.run(module)
    return worth


def _raised(plan: Plan, level: int) -> int:
    return sum(min(level + 1, layer.blocks) - 1 for layer in plan.layers)


def _beside(checkpoint: StackCheckpoint, skeleton: Skeleton) -> Skeleton:
    """A skeleton of its own for a stack that has no config beside it."""
    made = copy.copy(skeleton)
    made.checkpoint = checkpoint
    return made


class _resident:
    """All blocks of a skeleton with their weights in memory, for a while."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton

    def _names(self) -> Iterator[tuple[Any, str, str]]:
        for number, module in enumerate(self.skeleton.blocks):
            for name, _ in list(module.named_parameters()):
                yield module, name, f"{self.skeleton.stack}.{number}.{name}"

    def __enter__(self) -> None:
        import torch

        for module, name, stored in self._names():
            values = torch.from_numpy(self.skeleton.checkpoint.values(stored))
            put(module, name, values.view(self.skeleton.checkpoint.tensors[stored].shape).to(self.skeleton.device))

    def __exit__(self, *_: object) -> None:
        for module, name, _stored in self._names():
            put(module, name, None)


def _branch(walk: Walk) -> Walk:
    """Another way on from here, which leaves this one's hidden states."""
    made = copy.copy(walk)
    made.hidden = list(walk.hidden)
    return made


def curve(skeleton: Skeleton, plan: Plan, sources: Sequence[Checkpoint], windows: Windows) -> list[tuple[int, float]]:
    """(bytes, perplexity) at some budgets from the smallest to the largest."""
    import torch

    ids, place = torch.from_numpy(windows.ids[:_JUDGED]), skeleton.checkpoint.path
    total = len(plan.order)
    chosen = sorted({round(total * i / (_POINTS - 1)) for i in range(_POINTS)})
    report.begin("budgets", len(chosen), "budgets")
    found = []
    for taken in chosen:
        stack = StackCheckpoint(place, plan, sources, taken)
        surprise = likelihoods(Walk(_beside(stack, skeleton), ids).through())
        found.append((stack.nbytes, float(np.exp(min(80.0, float(surprise.mean()))))))
        report.step(1)
    report.end()
    return found
