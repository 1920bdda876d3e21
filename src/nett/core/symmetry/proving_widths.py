"""The proof that the code of a torch module allows other widths: on random weights and input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.groups import Refusal, Symmetry
from nett.core.symmetry.proof import TOLERANCE, arrays_of, float64_throughout, scrambled
from nett.core.symmetry.widths import GroupMap, UnitMap, resized


def prove_widths(symmetry: Symmetry, module: Any, example: Any, *, seed: int = 0) -> tuple[Symmetry, list[Refusal]]:
    """The groups of ``symmetry`` that can have other widths in this module, and why the others cannot.

    Some units of each group are doubled, and what reads them gets half of each: that is the same function, unless the
    code counts units, pads to a number of them, or mixes them (LayerNorm). Tried on random weights and input, all
    groups at once, and one by one where that fails.
    """
    import torch

    model = fitted(module, {}).double().eval()
    draw = torch.Generator().manual_seed(seed)
    arguments = tuple(
        torch.randn(a.shape, generator=draw, dtype=torch.float64)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in (example if isinstance(example, tuple) else (example,))
    )
    tensors = scrambled({n: t.detach().numpy() for n, t in model.state_dict().items()}, seed=seed)
    for alias, name in symmetry.aliases.items():
        if alias > name and name in tensors:
            tensors[alias] = tensors[name]
    rng = np.random.default_rng(seed)

    def outputs(weights: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad(), float64_throughout():
            return arrays_of(fitted(model, weights)(*arguments))

    before = outputs(tensors)
    largest = max((float(np.max(np.abs(o))) for o in before if o.size), default=0.0)

    def why_not(names: list[str]) -> str | None:
        try:
            after = outputs(_doubled(symmetry, tensors, names, rng))
        except Refused as error:
            return error.what
        except (RuntimeError, ValueError, IndexError) as error:
            return f"the module's code does not run with another width: {str(error).splitlines()[0]}"
        if [a.shape for a in after] != [b.shape for b in before]:
            return "its outputs change their shape with the width"
        change = max(float(np.max(np.abs(a - b))) for a, b in zip(after, before, strict=True) if b.size) / largest
        return (
            None if change <= TOLERANCE else f"doubling units changed the output by {change:.1e} of its largest value"
        )

    names = [g.name for g in symmetry.groups]
    refused = list[Refusal]()
    if names and why_not(names) is not None:
        each = {name: why_not([name]) for name in names}
        refused += [Refusal(name, why) for name, why in each.items() if why is not None]
        names = [name for name, why in each.items() if why is None]
        if names and (why := why_not(names)) is not None:
            refused += [Refusal(name, f"alone it can, but together with the others not: {why}") for name in names]
    return symmetry.without(refused), refused


def _doubled(symmetry: Symmetry, tensors: Mapping[str, Array], names: list[str], rng: Any) -> dict[str, Array]:
    """Some units of these groups twice, halved where they are read: the same function."""
    maps = {}
    for name in names:
        size = symmetry.group(name).size
        twice = np.sort(rng.permutation(size)[: max(1, size // 2)])
        matrix = np.eye(size)[np.concatenate([np.arange(size), twice])]
        maps[name] = GroupMap(UnitMap.of_matrix(matrix), UnitMap.of_matrix(matrix / matrix.sum(axis=0)))
    return resized(symmetry, tensors, maps)[1]
