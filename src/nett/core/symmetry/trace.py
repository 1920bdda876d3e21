"""The symmetry of a torch module, derived by following every axis through its torch.fx graph.

The graph is run once on an example; each value is carried along with the atoms of its axes, and each operation
has a rule that ties them. What no rule is known for pins the units that reach it, so that the rest of the network
keeps its groups, and is reported with its place in the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from nett.core.errors import Refused, missing_extra
from nett.core.symmetry.atoms import Atoms, Axis, Owned
from nett.core.symmetry.groups import Refusal, Role, Symmetry, Where


@final
@dataclass
class Traced:
    """A tensor on its way through the graph: its value on the example and the atoms of its axes."""

    value: Any
    axes: list[Axis]
    owned: Owned | None = None  # if it is a parameter or buffer


@final
@dataclass
class Trace:
    """One run through a graph: what the rules need, and what they leave behind."""

    atoms: Atoms = field(default_factory=Atoms)
    owned: dict[int, Owned] = field(default_factory=dict)  # by id of the tensor
    refused: list[Refusal] = field(default_factory=list)
    node: str = ""  # the one that is looked at, and its operation
    operation: str = ""

    def axis(self, traced: Traced | None, axis: int, role: Role, onto: Axis) -> Axis:
        """Use an axis of a parameter in this role, tied to ``onto``."""
        if traced is None:
            return onto
        if traced.owned is not None:
            if traced.axes[axis] is None:
                traced.axes[axis] = self.atoms.fresh(traced.value.shape[axis])
            traced.owned.roles[axis] = traced.owned.roles[axis] or role
        return self.atoms.tie(traced.axes[axis], onto)

    def made(self, traced: Traced, axis: int, role: Role = "producer") -> Axis:
        """The axis of a parameter that makes new units."""
        if traced.owned is not None and traced.axes[axis] is None:
            traced.axes[axis] = self.atoms.fresh(traced.value.shape[axis])
        if traced.owned is not None:
            traced.owned.roles[axis] = traced.owned.roles[axis] or role
        return traced.axes[axis]

    def part(self, traced: Traced, axis: int, onto: Axis, where: Where) -> None:
        """A part of a parameter whose columns read these units."""
        if onto is not None and traced.owned is not None:
            traced.owned.parts.append((axis, onto, where))

    def pin(self, traced: Any) -> None:
        """Nothing of this may move."""
        for one in tensors_in(traced):
            for axis in one.axes:
                self.atoms.pin(axis)
            if one.owned is not None:  # and nothing that ties to it later
                for a, size in enumerate(one.value.shape):
                    if one.axes[a] is None and size > 1:
                        one.axes[a] = self.atoms.fresh(size)
                        self.atoms.pin(one.axes[a])

    def stop(self, what: str, inputs: Any) -> None:
        """An operation without a rule: its inputs' units stay where they are."""
        moving = any(axis is not None for one in tensors_in(inputs) for axis in one.axes)
        self.pin(inputs)
        if moving:
            self.refused.append(Refusal(self.node, f"nothing is known of {what}, so its inputs are not permuted"))


def tensors_in(value: Any) -> list[Traced]:
    """Every traced tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Traced):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_in(v)]
    return []


def of_module(module: Any, example: Any) -> Symmetry:
    """The permutation symmetry of ``module``, which is called with ``example`` (a tensor or a tuple of arguments).

    Raises Refused where torch.fx cannot trace the module. The result is not proved yet: see :func:`prove`.
    """
    try:
        torch = importlib.import_module("torch")
        fx = importlib.import_module("torch.fx")
    except ImportError as error:
        raise missing_extra("torch", "models", "following a module") from error
    arguments = example if isinstance(example, tuple) else (example,)
    was_training = module.training
    module.eval()
    try:
        graph = fx.symbolic_trace(module)
    except Exception as error:  # whatever the module's code raises when it is run on proxies
        module.train(was_training)
        raise Refused(
            f"torch.fx cannot follow this module ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            where=type(module).__name__,
            hint="Control flow that depends on values cannot be traced: give a module without it.",
        ) from error
    from nett.core.symmetry.interpreter import followed

    trace = Trace()
    stored = module.state_dict(keep_vars=True)
    for name, tensor in stored.items():
        one = trace.owned.setdefault(id(tensor), Owned([], [None] * tensor.dim(), [None] * tensor.dim()))
        one.names.append(name)
    with torch.no_grad():
        folds = followed(graph, trace, arguments)
    module.train(was_training)
    shapes = {n: tuple(t.shape) for n, t in stored.items()}
    aliases = {n: one.names[0] for one in trace.owned.values() for n in one.names[1:]}
    aliases |= {one.names[0]: one.names[1] for one in trace.owned.values() if len(one.names) > 1}
    groups = trace.atoms.groups(list(trace.owned.values()))
    return Symmetry(groups, shapes, tuple(trace.refused), folds, aliases)
