"""A torch module's linear layers as bit planes (P56)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from nett.core.errors import Refused

if TYPE_CHECKING:
    import torch

    from nett.weights.bipolar_linear import Rule

    Module = torch.nn.Module
else:
    Module, Rule = Any, Any


def as_bipolar(
    model: Module,
    *,
    bits: int = 2,
    activations: int = 8,
    group: int = 0,
    search: bool = True,
    rule: Rule = "auto",
    skip: Sequence[str] = ("lm_head",),
) -> Module:
    """Put a :class:`~nett.weights.bipolar_linear.BipolarLinear` in the place of each linear layer, in the module itself.

    Args:
        bits, activations: bits of a weight and of an input, 1 to 8 each.
        group: columns of a weight that share a scale; 0 for a row.
        search, rule: how the scales of weights and of inputs are found.
        skip: names, or patterns with ``*``, of layers that stay.
    Refused where there is no layer to replace. For inference: gradients do not pass.
    """
    import torch

    from nett.weights.bipolar_linear import BipolarLinear

    made: dict[int, torch.nn.Module] = {}
    for name, parent in list(model.named_modules(remove_duplicate=False)):
        for child, layer in list(parent._modules.items()):
            full = f"{name}.{child}" if name else child
            if type(layer) is torch.nn.Linear and not any(fnmatch(full, pattern) for pattern in skip):
                if id(layer) not in made:
                    made[id(layer)] = BipolarLinear.of(
                        layer, bits=bits, activations=activations, group=group, search=search, rule=rule
                    )
                setattr(parent, child, made[id(layer)])
    if not made:
        raise Refused("the module has no linear layer that may be replaced", where="weights/as_bipolar")
    return model
