"""How much each head and channel matters, told from low-rank updates and their gradients (LoRAPrune, P64)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from nett.core.dtypes import Array
from nett.weights.lora import Updated
from nett.weights.structures import Structure, module_name

By = Literal["lora", "taylor", "magnitude", "random"]
DECAY = 0.9
_LEAST = 1e-8


def gradient_by_lora(one: Updated) -> Tensor:
    """dB A + B dA - dB dA [out, in]: LoRAPrune's stand-in (equation 8) for the gradient of the weight, from those of the
    update alone. With B = 0 it is dB A."""
    da, db = one.a.grad, one.b.grad
    if da is None or db is None:
        raise RuntimeError("no backward pass went through this update")
    return db @ one.a.detach() + one.b.detach() @ da - db @ da


def sensitivity(one: Updated, by: By) -> Tensor:
    """What each entry of a matrix is worth, in the order in which it is stored.

    ``lora``: |gradient_by_lora * (W + scaling B A)|; ``taylor``: the same with the true gradient of W; ``magnitude``: without.
    """
    weight = one.effective()
    if by == "lora":
        return (one.as_stored(gradient_by_lora(one)) * weight).abs()
    if by == "taylor":
        gradient = one.weight.grad
        if gradient is None:
            raise RuntimeError("no backward pass went through this weight")
        return (gradient * weight).abs()
    return weight.abs()


@final
class Importance:
    """A running mean of the importance of each unit; see :func:`sensitivity`.

    Within a matrix the values of a unit are summed and the units' sums scaled to length 1; those of the matrices of a
    structure are added.
    """

    def __init__(self, structures: Sequence[Structure], updates: Mapping[str, Updated], by: By, seed: int) -> None:
        self.structures, self.updates, self.by = structures, updates, by
        self.skipped = self.taken = 0
        random = np.random.default_rng(seed)
        start = random.random if by == "random" else np.zeros
        self.scores: dict[str, Array] = {s.name: start(s.size) for s in structures}
        self._index = {
            s.name: [
                (module_name(p), p.axis, torch.from_numpy(np.asarray(p.index)))
                for p in s.places
                if self._matrix(p.tensor)
            ]
            for s in structures
        }

    def _matrix(self, tensor: str) -> bool:
        return tensor.endswith(".weight") and tensor.removesuffix(".weight") in self.updates

    def see(self) -> None:
        """Take the gradients of this step into account; a step with a value that is no number is left out."""
        if self.by == "random":
            return
        with torch.no_grad():
            seen = {name: sensitivity(one, self.by) for name, one in self.updates.items()}
            now = {s.name: self._units(s, seen) for s in self.structures}
        if not all(np.isfinite(v).all() for v in now.values()):
            self.skipped += 1
            return
        self.taken += 1
        for name, values in now.items():
            self.scores[name] = DECAY * self.scores[name] + (1 - DECAY) * values

    def _units(self, structure: Structure, seen: Mapping[str, Tensor]) -> Array:
        total = np.zeros(structure.size)
        for name, axis, index in self._index[structure.name]:
            line = seen[name].sum(dim=1 - axis)
            units = line[index.to(line.device)].sum(dim=-1)
            total += (units / (units.norm() + _LEAST)).double().cpu().numpy()
        return total


def least(scores: Array, already: Array, count: int) -> Array:
    """Numbers of the ``count`` least units; those that are ``already`` gone stay gone. Ties go by number."""
    ranked = scores.copy()
    ranked[already] = -1.0
    return np.sort(np.argsort(ranked, kind="stable")[:count])
