"""Neighbouring blocks that share one set of weights, each with its own norms (P07); and that model written out again."""

from __future__ import annotations

from typing import Any

from torch import nn

from nett.core.errors import Refused
from nett.weights.stack import Stack, remade


def share(stack: Stack, size: int) -> list[list[int]]:
    """From here on, the blocks of each group of ``size`` neighbours multiply by the matrices of the group's first one.

    A module with a matrix is shared whole (its bias with it); modules of vectors alone (norms) stay each block's own.
    Returns the groups. Refused where two blocks of a group are not built alike.
    """
    groups = [list(range(at, min(at + size, len(stack)))) for at in range(0, len(stack), size)]
    for group in groups:
        parent = dict(stack.layers[group[0]].named_modules())
        for number in group[1:]:
            member = dict(stack.layers[number].named_modules())
            _alike(stack, group[0], number)
            for name, module in parent.items():
                own = dict(module.named_parameters(recurse=False))
                if any(p.dim() >= 2 for p in own.values()):
                    for key, parameter in own.items():
                        setattr(member[name], key, parameter)
    return groups


def _alike(stack: Stack, one: int, other: int) -> None:
    a, b = ({n: tuple(p.shape) for n, p in stack.layers[i].named_parameters()} for i in (one, other))
    if a != b:
        name = sorted(set(a.items()) ^ set(b.items()))[0][0]
        raise Refused(
            f"blocks {one} and {other} cannot share weights: {name!r} is {a.get(name, 'missing')} and {b.get(name, 'missing')}",
            hint="Use --share 1.",
        )


def unfolded(model: Any) -> Any:
    """The same function with a copy of the shared weights in each block, as transformers' folders have it."""
    return remade(model, type(model.config).from_dict(model.config.to_dict()), model.state_dict())


def bytes_held(model: nn.Module) -> int:
    """Bytes of the parameters, each counted once however many blocks use it."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
