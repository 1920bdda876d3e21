"""The proof that units can be removed: on random numbers, the network with their slices at zero answers as the network
without them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.structure.removing import removed
from nett.core.structure.units import ALL, MAKING
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.groups import Group, Place, Refusal, Role, Symmetry
from nett.core.symmetry.proof import (
    TOLERANCE,
    arrays_of,
    float64_throughout,
    largest_change,
    random_arguments,
    scrambled_state,
)


def prove_removal(
    symmetry: Symmetry, groups: Sequence[Group], module: Any, example: Any, *, seed: int = 0
) -> tuple[dict[str, tuple[Role, ...]], list[Refusal]]:
    """Group -> the roles whose zeros make a unit as good as removed (:class:`Structure`), and why the others have none.

    Some units of every group, about half, are zeroed, and removed; in float64, all groups at once, and one by one where
    that fails.
    """
    import torch

    model = fitted(module, {}).double().eval()
    arguments = example if isinstance(example, Mapping) else random_arguments(example, seed)
    tensors = scrambled_state(model, symmetry, seed)
    model = fitted(model, {n: torch.from_numpy(np.array(t)) for n, t in tensors.items()})
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    rng = np.random.default_rng(seed)
    gone = {g.name: np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]) for g in groups}

    def run(network: Any) -> list[Array]:
        with torch.no_grad(), float64_throughout():
            return outputs_of(network.eval(), arguments)

    def why_not(some: Sequence[Group], roles: Mapping[str, tuple[Role, ...]]) -> str | None:
        zeroed = {n: t for n, t in tensors.items() if n in parameters}
        touched = dict[str, Array]()
        for group in some:
            for place in (p for p in group.places if p.role in roles[group.name] and p.tensor in zeroed):
                touched.setdefault(place.tensor, np.array(zeroed[place.tensor]))
                _zero(touched[place.tensor], place, gone[group.name])
        before = run(fitted(model, {n: torch.from_numpy(t) for n, t in touched.items()}))
        try:
            kept = {g.name: np.setdiff1d(np.arange(g.size), gone[g.name]) for g in some}
            after = run(removed(model, some, kept))
        except Refused as error:
            return error.what
        except Exception as error:  # whatever the network's own code says to other widths
            return f"the module's code does not run without them: {str(error).splitlines()[0] if str(error) else error}"
        if [a.shape for a in after] != [b.shape for b in before]:
            return "its outputs change their shape without them"
        change = largest_change(before, after)
        return None if change <= TOLERANCE else f"zeroing is not removing: the output differs by {change:.1e}"

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _sorted(groups, why_not)
    finally:
        torch.set_num_threads(threads)


def _sorted(groups: Sequence[Group], why_not: Any) -> tuple[dict[str, tuple[Role, ...]], list[Refusal]]:
    """All groups by what they make, or else each by itself, with what reads it where that is needed."""
    if not groups:
        return {}, []
    roles = {g.name: MAKING for g in groups}
    if why_not(groups, roles) is None:
        return roles, []
    refused, kept = list[Refusal](), list[Group]()
    for group in groups:
        for tried in (MAKING, ALL):
            why = why_not([group], {group.name: tried})
            if why is None:
                roles[group.name] = tried
                kept.append(group)
                break
        else:
            over = [o for o in group.through if "norm" in o and not o.startswith(("batch", "instance"))]
            cause = f" ({over[0]} sees how many units there are)" if over else ""
            refused.append(Refusal(group.name, f"{why}{cause}"))
    if kept and (why := why_not(kept, roles)) is not None:
        refused += [Refusal(g.name, f"alone it can be cut, but together with the others not: {why}") for g in kept]
        kept = []
    return {g.name: roles[g.name] for g in kept}, refused


def outputs_of(module: Any, example: Any) -> list[Array]:
    """Every tensor that the module gives for ``example`` (a tensor, a tuple of arguments, or a mapping of names to
    arguments), in float64; but for what language models keep for the next token."""
    import torch

    with torch.no_grad():
        if isinstance(example, Mapping):
            outputs = module(**example)
        else:
            outputs = module(*(example if isinstance(example, tuple) else (example,)))
    if isinstance(outputs, Mapping):
        outputs = {k: v for k, v in outputs.items() if k != "past_key_values"}
    return arrays_of(outputs)


def _zero(tensor: Array, place: Place, units: Array) -> None:
    part = np.moveaxis(place.part(tensor), place.axis, 0)
    part[place.index[units].reshape(-1)] = 0
