"""Where a layer's inputs can be scaled at no cost: in the norm or the linear layer that they are proportional to.

Found by trying, so that no family of models is known here: each candidate's entries are multiplied by known factors,
and the inputs of the layers behind tell which entry each of them follows. What was found is proved by running the
block on calibration text with random scales folded in: its output must stay what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from nett.core.blocks import Linear, Walk
from nett.core.blocks.skeleton import put
from nett.weights.protocol import Tensor
from nett.weights.watching import watched

_BASE = 64  # factors that can be told apart; entries are numbered in this base, a run a digit
_NEAR, _STEADY = 0.003, 1e-3  # of the logarithm of a factor; of an input that is proportional
_SAME = 1e-4  # of a block's largest output: what float32 may differ by


@final
@dataclass(frozen=True)
class Fold:
    """``names``: parameters of the block whose entries (rows of a matrix) are divided. ``shift``: added to them by the
    module when it runs (norms that store their gain minus one). ``source`` int64 [in]: the entry of each input."""

    names: tuple[str, ...]
    shift: float
    source: Tensor

    def divided(self, values: Mapping[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
        """The parameters with each entry divided by the scale [in] of the inputs that follow it; float32."""
        first = values[self.names[0]]
        by = scale.new_ones(len(first))
        by[self.source] = scale.float()
        found = {}
        for name in self.names:
            value, shift = values[name].float(), self.shift if name == self.names[0] else 0.0
            found[name] = (value + shift) / by.reshape(-1, *[1] * (value.dim() - 1)) - shift
        return found


def folds(
    walk: Walk,
    module: Any,
    groups: Sequence[Sequence[Linear]],
    layers: Sequence[Linear],
    before: Mapping[str, Fold] | None = None,
) -> dict[str, Fold]:
    """First layer of a group -> where the group's inputs may be scaled; groups for which there is no place are left
    out. ``layers``: the linear layers that may be changed. ``before``: what was found in another block, to be tried,
    and proved anew, first."""
    import torch

    output, random = walk.first(module), torch.Generator().manual_seed(0)
    found: dict[str, Fold] = {}

    def prove(group: Sequence[Linear], fold: Fold) -> None:
        entries = len(module.get_parameter(fold.names[0]))
        scale = torch.empty(entries).uniform_(0.5, 2.0, generator=random).to(fold.source.device)
        if _holds(walk, module, group, fold, scale[fold.source], output):
            found[group[0].name] = fold

    candidates = list(_candidates(module, layers))
    for group in groups:
        fold = (before or {}).get(group[0].name)
        if fold is not None and (fold.names, fold.shift) in candidates and len(fold.source) == group[0].columns:
            prove(group, fold)
    if all(g[0].name in found for g in groups):
        return found
    inputs = _inputs(walk, module, groups)
    for names, shift in candidates:
        left = [g for g in groups if g[0].name not in found and not _inside(names[0], g)]
        for group, source in _followed(walk, module, left, inputs, names, shift):
            prove(group, Fold(names, shift, source))
    return found


def ordered(groups: Sequence[Sequence[Linear]], places: Mapping[str, Fold]) -> list[list[Linear]]:
    """The groups so that each stands before the one whose layer its scale is folded into."""
    left, found = [list(g) for g in groups], list[list[Linear]]()
    while left:
        targets = {places[g[0].name].names[0] for g in left if g[0].name in places}
        free = [g for g in left if not any(f"{layer.name}.weight" in targets for layer in g)] or left[-1:]
        found += free
        left = [g for g in left if g not in free]
    return found


def _candidates(module: Any, layers: Sequence[Linear]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Parameters that scale their module's output entry by entry: norms, and rows of the linear layers at work."""
    import torch

    at_work = {layer.name for layer in layers}
    for shift in (0.0, 1.0):
        for name, part in module.named_modules():
            weight, linear = part._parameters.get("weight"), isinstance(part, torch.nn.Linear)
            if weight is None or (name not in at_work or shift if linear else weight.dim() != 1):
                continue
            yield tuple(f"{name}.{n}" for n in ("weight", "bias") if part._parameters.get(n) is not None), shift


def _inside(name: str, group: Sequence[Linear]) -> bool:
    return any(name == f"{layer.name}.weight" for layer in group)


def _inputs(walk: Walk, module: Any, groups: Sequence[Sequence[Linear]]) -> dict[str, Tensor]:
    """What goes into each group on the first window, ``[tokens, in]`` float32."""
    caught: dict[str, Tensor] = {}

    def look(layer: Linear, given: Tensor) -> None:
        caught[layer.name] = given.float().reshape(-1, given.shape[-1])

    with watched(module, [g[0] for g in groups], look):
        walk.first(module)
    return caught


def _followed(
    walk: Walk,
    module: Any,
    groups: Sequence[Sequence[Linear]],
    inputs: Mapping[str, Tensor],
    names: tuple[str, ...],
    shift: float,
) -> Iterator[tuple[Sequence[Linear], Tensor]]:
    """Groups each input of which follows one entry of the parameters, and which."""
    import torch

    left = list(groups)
    count = len(module.get_parameter(names[0]))
    factors = torch.logspace(-1, 1, _BASE, base=2.0, dtype=torch.float64).to(walk.skeleton.device)
    entries, unit = torch.arange(count, device=walk.skeleton.device), 1
    sources = {g[0].name: torch.zeros(g[0].columns, dtype=torch.int64, device=entries.device) for g in left}
    while left and unit < max(count, 2):
        by = factors[entries // unit % _BASE].float()
        fold = Fold(names, shift, entries)
        with _put(module, fold.divided(_values(module, names), 1 / by)):
            changed = _inputs(walk, module, left)
        still = []
        for group in left:
            digit = _digits(inputs[group[0].name], changed[group[0].name], factors)
            if digit is None:
                continue
            sources[group[0].name] += digit * unit
            still.append(group)
        left, unit = still, unit * _BASE
    for group in left:
        source = sources[group[0].name]
        silent = inputs[group[0].name].abs().amax(0) == 0  # nothing was seen of them: they follow as the others do
        own = torch.arange(len(source), device=source.device)
        if bool(silent.any()):
            if not bool((source == own)[~silent].all()):
                continue
            source = own
        if int(source.max()) < count:
            yield group, source


def _digits(before: Tensor, after: Tensor, factors: Tensor) -> Tensor | None:
    """Which of the factors each input was multiplied by; None where one of them was by none."""
    under = before.double().square().sum(0)
    ratio = (before.double() * after.double()).sum(0) / under.where(under > 0, under.new_ones(()))
    silent = under == 0
    rest = (after.double() - before.double() * ratio).square().sum(0)
    if bool(((rest > _STEADY**2 * after.double().square().sum(0)) & ~silent).any()):
        return None
    ratio = ratio.where(~silent, factors[0]).clamp(min=1e-9)
    step = float((factors[1] / factors[0]).log())
    place = (ratio / factors[0]).log() / step
    near = place.round()
    fits = ((place - near).abs() * step < _NEAR) & (near >= 0) & (near < len(factors))
    return near.long() if bool((fits | silent).all()) else None


def _holds(walk: Walk, module: Any, group: Sequence[Linear], fold: Fold, scale: Tensor, output: Tensor) -> bool:
    """Whether the block computes the same with the scale folded into both sides."""
    values = fold.divided(_values(module, fold.names), scale)
    for layer in group:
        name = f"{layer.name}.weight"
        values[name] = values.get(name, module.get_parameter(name).float()) * scale
    with _put(module, values):
        gap = float((walk.first(module) - output).abs().max())
    return gap <= _SAME * float(output.abs().max())


def _values(module: Any, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: module.get_parameter(name).data for name in names}


@contextmanager
def _put(module: Any, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The block with other parameters, for a while."""
    before = _values(module, list(values))
    for name, value in values.items():
        put(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            put(module, name, value)
