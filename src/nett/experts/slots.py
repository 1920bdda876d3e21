"""The places that a mixture's experts have in memory, filled from the file one expert at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from nett.core.errors import Refused
from nett.core.expert_modules import Mixture
from nett.experts.protocol import Tensor
from nett.experts.view import FileLayer


@final
class Slots:
    """``layer``: where all experts lie; ``mixture``: the module whose experts ``[slots, 2I, H]`` and ``[slots, H, I]`` are
    filled. ``rows``: parameters of the router with a row for each slot -> their tensor of the file, [E, …]; none where
    the router keeps all rows. ``bytes_read`` counts what is read of experts, ``bytes_beside`` what of rows.

    Refused where the module holds its experts otherwise.
    """

    def __init__(self, layer: FileLayer, mixture: Mixture, rows: Mapping[str, str] | None = None) -> None:
        self.layer, self.mixture, self._rows = layer, mixture, dict(rows or {})
        module, count = mixture.experts, mixture.count
        self._both, self._down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
        shapes = [None if t is None else tuple(t.shape) for t in (self._both, self._down)]
        if shapes != [(count, 2 * layer.width, layer.hidden), (count, layer.hidden, layer.width)]:
            raise Refused(
                f"the experts of {layer.name} are held by {type(module).__name__}, whose places cannot be filled one by one",
                where=layer.checkpoint.path,
            )
        self.bytes_read = self.bytes_beside = 0

    def __len__(self) -> int:
        return self.mixture.count

    def fill(self, slot: int, expert: int) -> None:
        """Read an expert into a slot, and its rows of the router."""
        import torch

        width, place = self.layer.width, self.layer.place
        assert self._both is not None and self._down is not None
        with torch.no_grad():
            if place.fused:
                self._both[slot].copy_(self._part(place.roles["gate_up"][0], expert))
                self._down[slot].copy_(self._part(place.roles["down"][0], expert))
            else:
                targets = {"gate": self._both[slot, :width], "up": self._both[slot, width:], "down": self._down[slot]}
                for role, target in targets.items():
                    tensor = self.layer.tensor(place.roles[role][expert])
                    self.bytes_read += tensor.nbytes
                    target.copy_(tensor)
            for name, source in self._rows.items():
                value = getattr(self.mixture.router, name)
                row = self._row(source, expert)
                self.bytes_beside += row.nbytes
                value.data[slot] = row.to(value.dtype)

    def _part(self, name: str, expert: int) -> Tensor:
        found = self._row(name, expert)
        self.bytes_read += found.nbytes
        return found

    def _row(self, name: str, expert: int) -> Tensor:
        """Entry ``expert`` of a tensor with one for each expert; no other is read."""
        import numpy as np
        import torch

        info = self.layer.checkpoint.tensors[name]
        each = info.size // self.layer.count
        raw = self.layer.checkpoint.read(name, expert * each, (expert + 1) * each).view(np.uint8)
        found: Any = torch.from_numpy(raw).view(getattr(torch, info.dtype.alias))
        made: Tensor = found.reshape(info.shape[1:])
        return made
