"""Where the tensors of one mixture lie in a checkpoint, and reading them as experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.checkpoint import Checkpoint
from nett.core.errors import Refused
from nett.experts.protocol import Experts, Layer, Tensor


@final
@dataclass(frozen=True)
class Place:
    """Where the tensors of one mixture lie. ``roles``: gate, up, down -> a name for each expert; or gate_up, down -> one
    name. ``router``: its matrix ``[E, H]``; ``beside``: others with an entry for each expert (biases). ``shared``: tensors
    of experts that every token meets, which are no part of the count."""

    mixture: str
    roles: Mapping[str, Sequence[str]]
    router: str
    beside: Sequence[str]
    shared: Sequence[str]

    @property
    def fused(self) -> bool:
        return "gate_up" in self.roles

    @property
    def experts(self) -> list[str]:
        """The tensors of all its experts."""
        return [name for names in self.roles.values() for name in names]

    def named(self, count: int) -> dict[str, list[str]]:
        """As ``roles``, for so many experts."""
        if self.fused:
            return {role: list(names) for role, names in self.roles.items()}
        stem = f"{self.mixture}.experts."
        tails = {role: names[0].removeprefix(f"{stem}0.") for role, names in self.roles.items()}
        return {role: [f"{stem}{e}.{tail}" for e in range(count)] for role, tail in tails.items()}

    def stored(self, experts: Experts) -> dict[str, Tensor]:
        """Experts as tensors of the file's names."""
        import torch

        names = self.named(len(experts))
        if self.fused:
            both = torch.cat([experts.gate, experts.up], dim=1)
            return {names["gate_up"][0]: both, names["down"][0]: experts.down}
        made = {"gate": experts.gate, "up": experts.up, "down": experts.down}
        return {name: made[role][e] for role, many in names.items() for e, name in enumerate(many)}


@final
class FileLayer(Layer):
    """A mixture that lies in a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, place: Place, number: int, chosen: int, pools: int) -> None:
        tensors = checkpoint.tensors
        first = tensors[(place.roles["gate_up"] if place.fused else place.roles["gate"])[0]].shape
        self.checkpoint, self.place = checkpoint, place
        self.number, self.name = number, place.mixture
        self.count = int(first[0]) if place.fused else len(place.roles["gate"])
        self.width = int(first[1]) // 2 if place.fused else int(first[0])
        self.hidden, self.chosen = int(first[-1]), chosen
        each = self.count // max(1, pools)
        self.pools = tuple(tuple(range(p * each, (p + 1) * each)) for p in range(max(1, pools)))
        self.least = max(1, chosen, 2 * pools if pools > 1 else 1)

    @property
    def nbytes(self) -> int:
        """Of all its experts."""
        return sum(self.checkpoint.tensors[n].nbytes for n in self.place.experts)

    def read(self) -> Experts:
        import torch

        if self.place.fused:
            both = self.tensor(self.place.roles["gate_up"][0])
            return Experts(both[:, : self.width], both[:, self.width :], self.tensor(self.place.roles["down"][0]))
        kinds = {self.checkpoint.tensors[n].dtype for n in self.place.experts}
        if len(kinds) > 1:
            said = ", ".join(sorted(k.name for k in kinds))
            raise Refused(f"the experts of {self.name} have several types: {said}", where=self.checkpoint.path)
        made = {}
        for role, names in self.place.roles.items():
            shape = self.checkpoint.tensors[names[0]].shape
            made[role] = torch.empty((len(names), *shape), dtype=getattr(torch, kinds.copy().pop().alias))
            for e, name in enumerate(names):
                made[role][e] = self.tensor(name)
        return Experts(**made)

    def router(self) -> Tensor:
        return self.tensor(self.place.router)

    def tensor(self, name: str) -> Tensor:
        """A tensor in its own type."""
        import torch

        info = self.checkpoint.tensors[name]
        raw = torch.from_numpy(self.checkpoint.read(name).view(np.uint8))
        return raw.view(getattr(torch, info.dtype.alias)).reshape(info.shape)
