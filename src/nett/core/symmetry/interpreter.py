"""Running a traced graph node by node, values and atoms side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nett.core.symmetry.module_rules import MODULES
from nett.core.symmetry.rules import RULES
from nett.core.symmetry.trace import Trace, Traced

_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_FOLDABLE = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def followed(graph: fx.GraphModule, trace: Trace, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Run ``graph`` on ``arguments``, leaving ties in ``trace``. Returns norm layer -> layer it alone follows."""
    _Follower(graph, trace).run(*arguments)
    folds = {}
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, fx.Node) and isinstance(modules.get(str(node.target)), _NORMS):
            if before.op == "call_module" and len(before.users) == 1:
                if isinstance(modules[str(before.target)], _FOLDABLE):
                    folds[str(node.target)] = str(before.target)
    return folds


class _Follower(fx.Interpreter):
    """Final. Every value in the environment is a :class:`Traced`, or a tuple or list of them, or plain Python."""

    def __init__(self, graph: fx.GraphModule, trace: Trace) -> None:
        super().__init__(graph, garbage_collect_values=True)
        self.trace = trace

    def run_node(self, node: fx.Node) -> Any:
        stack = list(node.meta.get("nn_module_stack") or {})  # names of the modules whose code this is
        inside = stack[-1] if stack and node.op != "call_module" else ""
        self.trace.node = str(node.target) if node.op == "call_module" else f"{inside}.{node.name}".lstrip(".")
        return super().run_node(node)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        return self._fixed(value)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._parameter(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        result = module(*_bare(args), **_bare(kwargs))
        rule = MODULES.get(type(module))
        if rule is None:
            return self._unknown(type(module).__name__, (args, kwargs, self._own(module)), result)
        own = {n: self._parameter(t) for n, t in _tensors_of(module)}
        return self._checked(rule(self.trace, module, own, result, *args, **kwargs), result)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is getattr and isinstance(args[0], _Record):
            return getattr(*args)
        return self._call(getattr(target, "__name__", str(target)), target(*_bare(args), **_bare(kwargs)), args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        first, *rest = _bare(args)
        return self._call(str(target), getattr(first, target)(*rest, **_bare(kwargs)), args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.trace.pin(args)
        return None

    def _call(self, name: str, result: Any, args: Any, kwargs: Any) -> Any:
        plain = name.strip("_").replace("_", "").lower()
        rule = RULES.get(plain)
        if rule is None:
            return self._unknown(name, (args, kwargs), result)
        self.trace.operation = plain
        return self._checked(rule(self.trace, result, *args, **kwargs), result)

    def _unknown(self, what: str, inputs: Any, result: Any) -> Any:
        if not _has_tensors(result):
            return result  # a size, a shape, a flag
        self.trace.stop(what, inputs)
        return self._fixed(result)

    def _checked(self, traced: Any, result: Any) -> Any:
        """A rule that gives nothing passes the result on as plain Python, or as a tensor that never moves."""
        return self._fixed(result) if traced is None else traced

    def _fixed(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return Traced(value, [None] * value.dim())
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            found = _Record(self._fixed(v) for v in value)
            vars(found).update(zip(getattr(type(value), "__match_args__", ()), found, strict=False))
            return found
        return value

    def _parameter(self, tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor):
            return tensor
        owned = self.trace.owned.get(id(tensor))
        return Traced(tensor, [None] * tensor.dim()) if owned is None else Traced(tensor, owned.axes, owned)

    def _own(self, module: torch.nn.Module) -> list[Any]:
        return [self._parameter(t) for t in module.state_dict(keep_vars=True).values()]


class _Record(tuple[Any, ...]):
    """Final. Several results, with the names that torch gives them, such as ``values`` and ``indices``."""


def _tensors_of(module: torch.nn.Module) -> list[tuple[str, Any]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _bare(value: Any) -> Any:
    """Values without their atoms."""
    if isinstance(value, Traced):
        return value.value
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(_bare(value.start), _bare(value.stop), _bare(value.step))
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, list):
        return [_bare(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_bare(v) for v in value)
    return value


def _has_tensors(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, list | tuple) and any(_has_tensors(v) for v in value)
