"""The numerical proof: the network with its units in random places is the same function of random input.

Derivation can be wrong where a rule or a layout is; so no group is used before this. All numbers of the network are
random ones here, so that no weight that happens to be one or zero hides a mistake, and all is done in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.symmetry.groups import Group, Refusal, Symmetry

TOLERANCE = 1e-8  # of the largest output; float64 leaves about 1e-14 after a hundred layers
Function = Callable[[Mapping[str, Array]], Sequence[Array]]


@final
@dataclass(frozen=True)
class Proof:
    """What was seen of one group: the largest change of the output, relative to its largest number.

    All groups are tried at once, and each by itself where that fails. control: this group alone with one of its
    places left as it was, which must change something, or nothing is proved.
    """

    group: str
    difference: float
    control: float

    @property
    def ok(self) -> bool:
        return self.difference <= TOLERANCE and self.control > 100 * max(self.difference, 1e-15)

    @property
    def why(self) -> str:
        if not self.difference <= TOLERANCE:
            return f"permuting its units changed the output by {self.difference:.1e} of its largest value"
        return "the output does not depend on its units, so nothing can be proved about them"


def prove(
    symmetry: Symmetry, function: Function, tensors: Mapping[str, Array], *, seed: int = 0
) -> tuple[Symmetry, list[Proof]]:
    """``symmetry`` without the groups that fail, and what was seen of each.

    Args:
        function: the outputs of the network, as arrays, with these tensors as its weights; on input of its own.
        tensors: float64 numbers for every tensor; see :func:`scrambled`.
    """
    rng = np.random.default_rng(seed)
    before = [np.array(o, np.float64) for o in function(tensors)]
    orders = {g.name: _moving(rng, g.size) for g in symmetry.groups}
    together = largest_change(before, function(symmetry.apply(tensors, orders)))
    proofs = []
    for group in symmetry.groups:
        order, change = orders[group.name], together
        if not together <= TOLERANCE:  # which of them is it?
            change = largest_change(before, function({**tensors, **group.permuted(tensors, order)}))
        left = Group(group.name, group.unit, group.places[1:])
        control = largest_change(before, function({**tensors, **left.permuted(tensors, order)}))
        proofs.append(Proof(group.name, change, control))
    proved = symmetry.without(Refusal(p.group, p.why) for p in proofs if not p.ok)
    if proved.groups and not together <= TOLERANCE:
        joint = proved.apply(tensors, {g.name: orders[g.name] for g in proved.groups})
        change = largest_change(before, function(joint))
        if not change <= TOLERANCE:
            why = f"each group alone kept the output, but all together changed it by {change:.1e}"
            proved = proved.without([Refusal(g.name, why) for g in proved.groups])
    return proved, proofs


def scrambled(tensors: Mapping[str, Array], *, seed: int = 0) -> dict[str, Array]:
    """Random float64 numbers in the shapes of ``tensors``; variances are positive, integers stay."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f":
            found[name] = tensor
        elif tensor.ndim < 2:
            signs = 1 if "var" in name else rng.choice([-1, 1], tensor.shape)
            found[name] = np.asarray(rng.uniform(0.5, 1.5, tensor.shape) * signs)
        else:
            found[name] = rng.normal(size=tensor.shape) / np.sqrt(max(1, tensor[0].size))
    return found


def _moving(rng: np.random.Generator, size: int) -> Array:
    """A random order that is not that in which nothing moves."""
    order = rng.permutation(size)
    return order if np.any(order != np.arange(size)) else np.roll(order, 1)


def largest_change(before: Sequence[Array], after: Sequence[Array]) -> float:
    """NaN where the outputs are not finite or nothing but zero, so that no comparison holds."""
    largest = max((float(np.max(np.abs(o))) for o in before if o.size), default=0.0)
    if not np.isfinite(largest) or largest == 0:
        return float("nan")
    return max(float(np.max(np.abs(a - b))) for a, b in zip(after, before, strict=True) if b.size) / largest


def prove_module(symmetry: Symmetry, module: object, example: object, *, seed: int = 0) -> tuple[Symmetry, list[Proof]]:
    """:func:`prove` on a torch module in evaluation mode, on random input of the shapes of ``example``."""
    import copy

    import torch

    assert isinstance(module, torch.nn.Module)
    model = copy.deepcopy(module).double().eval()
    arguments = random_arguments(example, seed)
    tensors = scrambled_state(model, symmetry, seed)

    def function(weights: Mapping[str, Array]) -> list[Array]:
        state = {n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in weights.items()}
        with torch.no_grad(), float64_throughout():
            return arrays_of(torch.func.functional_call(model, state, arguments, tie_weights=False))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # float64 convolutions of small input: several threads wait for each other
    try:
        return prove(symmetry, function, tensors, seed=seed)
    finally:
        torch.set_num_threads(threads)


def random_arguments(example: object, seed: int) -> tuple[object, ...]:
    """Random float64 arguments of the shapes of ``example``, a tensor or a tuple; what is no float stays."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(a.shape, generator=generator, dtype=torch.float64)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in (example if isinstance(example, tuple) else (example,))
    )


def scrambled_state(model: Any, symmetry: Symmetry, seed: int) -> dict[str, Array]:
    """:func:`scrambled` for the state dict of a torch module; shared tensors stay equal."""
    stored = {
        n: t.detach().double().numpy() if t.is_floating_point() else t.numpy() for n, t in model.state_dict().items()
    }
    tensors = scrambled(stored, seed=seed)
    for alias, name in symmetry.aliases.items():
        if name in stored and alias > name:
            tensors[alias] = tensors[name]
    return tensors


def float64_throughout() -> Any:
    """A context in which code that asks for float32 gets float64, as normalisations of language models do: else
    the order of their sums would show at 1e-7."""
    import torch
    from torch.overrides import TorchFunctionMode

    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    class Wider(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                func = torch.Tensor.double
            kwargs = {k: wider(v) for k, v in (kwargs or {}).items()}
            return func(*(wider(a) for a in args), **kwargs)

    return Wider()


def arrays_of(outputs: object) -> list[Array]:
    """Every tensor of nested outputs as an array."""
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs.detach().double().numpy()]
    if isinstance(outputs, Mapping):
        return [a for v in outputs.values() for a in arrays_of(v)]
    if isinstance(outputs, list | tuple):
        return [a for v in outputs for a in arrays_of(v)]
    return []
