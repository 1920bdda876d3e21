"""Which groups of units may be merged at all, and which may be scaled: proved on random numbers, refused by name.

That units may change places does not yet make it right to merge equal ones: a normalisation over the units (LayerNorm,
RMSNorm) sees how many of each there are, and code may fix a width. Doubled units, halved where they are read, are the
same function exactly where merging equal ones is (:func:`nett.core.symmetry.proving_widths.prove_widths`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.folding import epsilons
from nett.core.symmetry.groups import Group, Origin, Refusal, Symmetry
from nett.core.symmetry.proof import (
    TOLERANCE,
    arrays_of,
    float64_throughout,
    largest_change,
    random_arguments,
    scrambled_state,
)
from nett.core.symmetry.proving_widths import prove_widths

NEURON = "MLP neuron"
_OVER_UNITS = ("layernorm", "rmsnorm", "groupnorm", "softmax", "logsoftmax", "normalize")


@final
@dataclass(frozen=True, eq=False)
class Mergeable:
    """symmetry: the groups whose equal units may merge; the others are refused in it. scalable: names of those that
    are the same function after a unit was multiplied and what reads it divided by a positive number. epsilon: what
    each BatchNorm adds to its variance."""

    symmetry: Symmetry
    scalable: frozenset[str]
    epsilon: Mapping[str, float]


def mergeable(symmetry: Symmetry, *, seed: int = 0) -> Mergeable:
    """The groups of ``symmetry`` that may merge, proved on the network that it was derived from.

    Where its origin is not known, nothing can be run: groups of which it is known without trying are refused.
    """
    symmetry = symmetry.without(_fixed(symmetry))
    origin = symmetry.origin or Origin()
    if origin.module is not None:
        return _on_module(symmetry, origin.module, origin.example, seed)
    if origin.config is not None:
        return _on_small_model(symmetry, origin.config, seed)
    return Mergeable(symmetry, frozenset(), {})


def told(refused: Sequence[Refusal]) -> list[str]:
    """One sentence for each reason: the first group of its kind by name, and how many more there are."""
    by_why: dict[str, list[str]] = {}
    for one in refused:
        by_why.setdefault(one.why, []).append(one.name)
    return [
        f"{names[0]}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}: {why}" for why, names in by_why.items()
    ]


def _fixed(symmetry: Symmetry) -> list[Refusal]:
    """Groups of which it is known without trying."""
    parents = {g.parent for g in symmetry.groups}
    found = []
    for group in symmetry.groups:
        why = ""
        if any(p.where for p in group.places):
            why = "it passes a grouped convolution, whose groups must stay equally wide"
        elif group.parent is not None or group.name in parents:
            why = "it lies in attention heads, whose number and size the model's code fixes"
        elif group.unit == "residual dimension":
            why = "norms see how many dimensions the residual stream has, so merging two of them is not exact"
        elif group.unit in ("pooled unit", "transform unit"):
            why = "the model's code fixes its width"
        elif not group.having("producer") or not group.having("consumer"):
            why = "nothing makes its units" if not group.having("producer") else "nothing reads its units"
        if why:
            found.append(Refusal(group.name, f"not merged: {why}"))
    return found


def _on_module(symmetry: Symmetry, module: Any, example: Any, seed: int) -> Mergeable:
    proved, refused = prove_widths(symmetry, module, example, seed=seed)
    return Mergeable(
        symmetry.without(_explained(r, symmetry) for r in refused),
        _scalable(proved, module, example, seed),
        epsilons(module),
    )


def _on_small_model(symmetry: Symmetry, config: Mapping[str, Any], seed: int) -> Mergeable:
    """Layers are judged by their like in a small model of the family."""
    from nett.core.symmetry.shrunken import kind_of, small_inputs, small_model
    from nett.core.symmetry.transformer import of_config

    model = small_model(config)
    stored = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    small = of_config(model.config.to_dict() | {"architectures": [type(model).__name__]}, stored)
    example = tuple(small_inputs(model, seed).values())
    proved, refusals = prove_widths(small.without(_fixed(small)), model, example, seed=seed)
    failed = {kind_of(r.name): r.why for r in refusals}
    seen = {kind_of(g.name) for g in proved.groups}
    free = {kind_of(n) for n in _scalable(proved, model, example, seed)}
    refused = [
        Refusal(g.name, f"not merged: {failed.get(kind_of(g.name), 'no small model has such a group to prove it on')}")
        for g in symmetry.groups
        if kind_of(g.name) in failed or kind_of(g.name) not in seen
    ]
    scalable = frozenset(g.name for g in symmetry.groups if kind_of(g.name) in free)
    return Mergeable(symmetry.without(refused), scalable, {})


def _explained(refusal: Refusal, symmetry: Symmetry) -> Refusal:
    """With the operation that sees how many units there are, where one is known."""
    over = [o for o in symmetry.group(refusal.name).through if o in _OVER_UNITS]
    cause = f" ({over[0]} sees how many units there are)" if over else ""
    return Refusal(refusal.name, f"not merged: {refusal.why}{cause}")


def _scalable(symmetry: Symmetry, module: Any, example: Any, seed: int) -> frozenset[str]:
    """The groups whose units may be multiplied by positive numbers: all at once, and one by one where that fails."""
    import torch

    model = fitted(module, {}).double().eval()
    arguments = random_arguments(example, seed)
    tensors = scrambled_state(model, symmetry, seed)

    def run(weights: Mapping[str, Array]) -> Sequence[Array]:
        with torch.no_grad(), float64_throughout():
            return arrays_of(fitted(model, {n: torch.from_numpy(np.array(t)) for n, t in weights.items()})(*arguments))

    free = [g for g in symmetry.groups if _plain_state(g, symmetry)]
    before = run(tensors)
    if not largest_change(before, run(_scaled(tensors, free, symmetry))) <= TOLERANCE:
        free = [g for g in free if largest_change(before, run(_scaled(tensors, [g], symmetry))) <= TOLERANCE]
    return frozenset(g.name for g in free)


def _plain_state(group: Group, symmetry: Symmetry) -> bool:
    """Whether nothing lies between producers and consumers but normalisations that fold into producers."""
    made = {p.tensor.rpartition(".")[0] for p in group.having("producer")}
    norms = {norm for norm, layer in symmetry.folds.items() if layer in made}
    return all(p.tensor.rpartition(".")[0] in norms for p in group.having("state")) and all(
        f"{norm}.weight" in symmetry.shapes for norm in norms
    )


def _scaled(tensors: Mapping[str, Array], groups: Sequence[Group], symmetry: Symmetry) -> dict[str, Array]:
    """Units multiplied by positive numbers, and what reads them divided."""
    found = dict(tensors)
    rng = np.random.default_rng(0)
    for group in groups:
        factor = rng.uniform(0.5, 2.0, group.size)
        norms = {n for n in symmetry.folds if any(p.tensor == f"{n}.weight" for p in group.places)}
        folded = {symmetry.folds[n] for n in norms}
        for place in group.places:
            layer, _, local = place.tensor.rpartition(".")
            if place.role != "consumer" and (layer in folded or (layer in norms and local.startswith("running"))):
                continue  # the normalisation is multiplied, not what comes before it
            found[place.tensor] = np.array(found[place.tensor])
            moved = np.moveaxis(found[place.tensor], place.axis, 0)
            by = factor if place.role != "consumer" else 1 / factor
            moved[place.index] *= by.reshape(-1, *[1] * moved.ndim)
    return found
