"""From hidden states to keys and values by the attention module's own way, and the directions that these depend on.

The module's ``forward`` is called with other hidden states and positions, and left where it gives keys and values to the
cache: norms, biases, partial rotations and fused projections are so the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from nett.core.errors import Refused

if TYPE_CHECKING:
    from nett.cache.protocol import Tensor
else:
    Tensor = Any


class _Caught(Exception):
    """Leaves a module's forward with its keys and values."""


class _Catcher:
    """Stands where the module has its cache."""

    def update(self, keys: Any, values: Any, *args: Any, **more: Any) -> Any:
        raise _Caught(keys, values)


@final
@dataclass(frozen=True)
class Way:
    """How one attention module makes keys and values. given: its other arguments; hidden, cache: names of those that are
    put in; rotary: the model's module of rotations, where it has one."""

    module: Any
    given: Mapping[str, Any]
    hidden: str
    cache: str
    rotary: Any

    def __call__(self, hidden: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys ``[b, h, n, k]`` and values ``[b, h, n, v]`` of ``hidden`` ``[b, n, d]`` at int ``[1 or b, n]``."""
        put = {self.hidden: hidden.contiguous(), self.cache: _Catcher()}
        if "position_embeddings" in self.given and positions is not None:
            put["position_embeddings"] = self.rotary.forward(hidden, positions.long())
        bound = _signature(self.module).bind_partial()
        bound.arguments.update({**self.given, **put})
        try:
            self.module.forward(*bound.args, **bound.kwargs)
        except _Caught as caught:
            keys, values = caught.args
            return keys, values
        raise Refused(f"{type(self.module).__name__} gave no keys and values to its cache")


def way_of(module: Any, args: tuple[Any, ...], named: Mapping[str, Any], rotary: Any) -> tuple[Way, Any, Any]:
    """(the way, hidden states, cache) of a call of an attention module; the cache is None where it has none."""
    from transformers.cache_utils import Cache

    given = dict(_signature(module).bind(*args, **named).arguments)
    hidden_name = next(iter(given))
    hidden = given.pop(hidden_name)
    name = next((n for n, v in given.items() if isinstance(v, Cache)), "")
    cache = given.pop(name, None)
    if "attention_mask" in given:
        given["attention_mask"] = None
    if "position_embeddings" in given:
        given["position_embeddings"] = None  # made for the positions that are held
    return Way(module, given, hidden_name, name, rotary), hidden, cache


def _signature(module: Any) -> Any:
    import inspect

    return inspect.signature(module.forward)


@final
@dataclass(frozen=True)
class Bases:
    """Orthonormal ``[d, k]``; None where hidden states themselves take no more numbers."""

    keys: Tensor | None = None
    values: Tensor | None = None
    both: Tensor | None = None


def bases_of(way: Way, hidden: Tensor, positions: Tensor | None, keys: Tensor, values: Tensor, where: str) -> Bases:
    """Directions of a few hidden states ``[b, n, d]`` that their ``keys`` and ``values`` depend on, by the singular value
    decomposition of the linear layers that these come through. Which layers those are is found by leaving all other
    directions out: keys stay as they were, or it is not theirs.

    Raises:
        Refused: keys and values are not made of these hidden states; or they are fewer than hidden states, and come
            through no linear layer of their own.
    """
    if not all(_same(a, b) for a, b in zip(way(hidden, positions), (keys, values), strict=True)):
        raise Refused("keys and values are not made of what attention was given alone", where=where)
    width = hidden.shape[-1]
    wide = keys.shape[1] * keys.shape[-1], values.shape[1] * values.shape[-1]
    if sum(wide) > width:
        return Bases()
    weights: dict[str, Any] = {}
    for linear in _linears(way.module, width, max(wide)):
        basis = _basis(linear.weight).to(hidden.dtype)
        found = way(hidden @ basis @ basis.T, positions)
        for name, mine, own in zip(("keys", "values"), found, (keys, values), strict=True):
            if name not in weights and _same(mine, own):
                weights[name] = (basis, linear.weight)
    if len(weights) < 2:
        missing = " and ".join(n for n in ("keys", "values") if n not in weights)
        raise Refused(
            f"{missing} come through no linear layer of their own (fused, or not linear in what attention is given), and"
            f" {width} hidden channels would take more than the {sum(wide)} of keys and values",
            where=where,
            hint="Use nett.cache.kivi on this model.",
        )
    (key_basis, w_k), (value_basis, w_v) = weights["keys"], weights["values"]
    import torch

    both = _basis(torch.cat([w_k, w_v])).to(hidden.dtype) if sum(wide) < width else None
    return Bases(key_basis, value_basis, both)


def _linears(module: Any, width: int, most: int) -> list[Any]:
    """Layers of a weight ``[out, width]`` that has fewer rows than columns."""
    found = [m for m in module.modules() if getattr(m, "weight", None) is not None and m.weight.dim() == 2]
    found = [m for m in found if m.weight.is_floating_point()]
    return [m for m in found if m.weight.shape[1] == width and m.weight.shape[0] <= most]


def _basis(weight: Any) -> Any:
    """Left singular vectors ``[d, out]`` of ``W^T``, by falling singular values."""
    import torch

    return torch.linalg.svd(weight.detach().float().T, full_matrices=False)[0]


def _same(a: Any, b: Any) -> bool:
    """To rounding of their type."""
    import torch

    if a.shape != b.shape:
        return False
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= torch.finfo(b.dtype).eps ** 0.5 * b.abs().max())
