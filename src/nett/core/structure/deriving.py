"""From a torch module to its proved structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from nett.core.errors import Refused, UsageError
from nett.core.structure.families import HEADS, is_transformers
from nett.core.structure.proving import prove_removal
from nett.core.structure.units import Structure
from nett.core.symmetry.groups import Group, Refusal, Role, Symmetry
from nett.core.symmetry.merging import told
from nett.core.symmetry.proof import prove_module
from nett.core.symmetry.shrunken import kind_of, prove_config, small_inputs, small_model
from nett.core.symmetry.trace import of_module
from nett.core.symmetry.transformer import of_config


def structure_of(module: Any, example: Any = None, *, partly: bool = False, skip: str = "", seed: int = 0) -> Structure:
    """The units of ``module`` that can be cut out, proved.

    Args:
        module: a torch module that torch.fx can follow, or a model of transformers of a known family.
        example: what it is called with: a tensor, a tuple of arguments or, for transformers, a mapping; that family
            needs none.
        partly: cut what can be, where a part of the network cannot be followed.
        skip: patterns of group names, with commas between them, that stay whole, such as ``*.heads,conv1``.

    Raises Refused, with every reason by the name of the module, where no unit can be cut out or (without ``partly``) a
    part of the network cannot be followed.
    """
    what = type(module).__name__
    if is_transformers(module):
        symmetry, roles, refused = _of_family(module, seed)
    else:
        symmetry, roles, refused = _of_code(module, example, partly, seed)
    groups = [g for g in symmetry.groups if g.name in roles]
    words = [w for w in (p.strip() for p in skip.split(",")) if w]
    for word in words:
        if not any(fnmatchcase(g.name, word) for g in groups):
            names = ", ".join(g.name for g in groups[:8])
            raise UsageError(f"skip = {word!r} fits no group", where=what, hint=f"Groups: {names or 'none'}")
    skipped = {g.name for g in groups if any(fnmatchcase(g.name, w) for w in words)}
    refused += [Refusal(name, "skipped, as asked") for name in sorted(skipped)]
    groups = [g for g in groups if g.name not in skipped]
    if not groups:
        said = "; ".join(told(refused)) or "it has no hidden units"
        raise Refused(f"no unit of this network can be cut out: {said}", where=what)
    return Structure(tuple(groups), {g.name: roles[g.name] for g in groups}, tuple(refused), example)


_Found = tuple[Symmetry, dict[str, tuple[Role, ...]], list[Refusal]]


def _of_code(module: Any, example: Any, partly: bool, seed: int) -> _Found:
    what = type(module).__name__
    if example is None:
        raise UsageError("the module needs an example of its input", where=what, hint="Give a tensor, or a tuple.")
    if isinstance(example, Mapping):
        raise UsageError(
            "an example that is a mapping of names is for models of transformers", where=what, hint="Give a tuple."
        )
    symmetry = of_module(module, example)
    if symmetry.refused and not partly:
        raise Refused(
            f"a part of this network cannot be followed: {'; '.join(map(str, symmetry.refused))}",
            where=what,
            hint="With partly=True the rest is cut, and what that part touches stays whole.",
        )
    symmetry, _ = prove_module(symmetry, module, example, seed=seed)
    free, refused = _candidates(symmetry)
    roles, more = prove_removal(symmetry, free, module, example, seed=seed)
    return symmetry, roles, [*symmetry.refused, *refused, *more]


def _of_family(module: Any, seed: int) -> _Found:
    """Layers are judged by their like in a small model of the family, so that a large one costs nothing."""
    config = module.config.to_dict() | {"architectures": [type(module).__name__]}
    symmetry = of_config(config, {n: tuple(t.shape) for n, t in module.state_dict().items()})
    symmetry, _ = prove_config(symmetry, config, seed=seed)
    free, refused = _candidates(symmetry)
    model = small_model(config)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    small = of_config(model.config.to_dict() | {"architectures": [type(model).__name__]}, shapes)
    small = replace(small, groups=tuple(g for g in small.groups if g.name not in {r.name for r in small.refused}))
    example = {**small_inputs(model, seed), "return_dict": True}
    proved, failed = prove_removal(small, _candidates(small)[0], model, example, seed=seed)
    kinds = {kind_of(name): roles for name, roles in proved.items()}
    why = {kind_of(r.name): r.why for r in failed}
    roles = {g.name: kinds[kind_of(g.name)] for g in free if kind_of(g.name) in kinds}
    unknown = "the small model on which groups are proved has no such group"
    refused += [Refusal(g.name, why.get(kind_of(g.name), unknown)) for g in free if g.name not in roles]
    return symmetry, roles, [*symmetry.refused, *refused]


def _candidates(symmetry: Symmetry) -> tuple[list[Group], list[Refusal]]:
    """Groups that are worth trying, and of the others why not."""
    free, refused = list[Group](), list[Refusal]()
    whole = {g.name for g in symmetry.groups if g.unit in HEADS}
    for group in symmetry.groups:
        why = ""
        if group.parent is not None:
            if group.parent in whole or not group.name.endswith(".query"):
                continue  # what is inside heads goes with the head
            why = "all its query heads share one KV head"
        elif any(p.where for p in group.places):
            why = "it passes a grouped convolution, whose groups must stay equally wide"
        elif group.unit == "residual dimension":
            why = "norms see how many dimensions the residual stream has"
        elif group.unit in ("pooled unit", "transform unit"):
            why = "the model's code fixes its width"
        elif not group.having("producer"):
            why = "nothing makes its units"
        elif group.size < 2:
            why = "it has one unit"
        if why:
            refused.append(Refusal(group.name, why))
        else:
            free.append(group)
    return free, refused
