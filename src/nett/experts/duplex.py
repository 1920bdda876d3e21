"""Duplex's rules (P42, sections IV and V): the time of a layer on each processor, which one gets it, and how a layer of
experts is split over both.

Time of a layer: the longer of its operations at peak rate and its bytes at peak bandwidth (a roofline). Schemes:

- ``gpu``, ``pim``: every layer on the xPU, on Logic-PIM;
- ``best``: each layer on the processor that is faster, one at a time (the paper's Duplex);
- ``experts``: the same, but the experts of a layer at the same time on both: those with the fewest tokens on Logic-PIM;
- ``attention``: attention of prompts on the xPU while that of decoding requests is on Logic-PIM;
- ``duplex``: both (the paper's Duplex+PE).

What is done at the same time is never slower than ``best``, because a split may leave one of the processors idle, and
attention falls back to one processor after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.experts.duplex_settings import Hardware, Scheme
from nett.experts.duplex_work import Expert, Numbers

Times = Any  # array of float64


@final
@dataclass(frozen=True)
class Processor:
    """Rates that are reached: FLOP/s and B/s."""

    flops: float
    bandwidth: float

    def seconds(self, flops: Numbers, moved: Numbers) -> Times:
        """max(flops / FLOP/s, bytes / B/s)."""
        return np.maximum(flops / self.flops, moved / self.bandwidth)


@final
@dataclass(frozen=True)
class Device:
    """Both processors of a device, and the kinds of layers (fc, attention, experts) that Logic-PIM can compute."""

    xpu: Processor
    pim: Processor
    layers: tuple[str, ...]

    def on_pim(self, scheme: Scheme, kind: str, xpu: Times, pim: Times) -> Any:
        """Whether a layer is computed by Logic-PIM, with these times on each; where equal, by the xPU."""
        if scheme == "pim":
            return np.full(np.shape(xpu), True)
        if scheme == "gpu" or kind not in self.layers:
            return np.full(np.shape(xpu), False)
        return pim < xpu


def device_of(hardware: Hardware) -> Device:
    """Rates with their efficiencies, relative ones resolved."""
    xpu, pim = hardware.xpu, hardware.pim
    wide = xpu.bandwidth.value
    near = pim.bandwidth.value * (wide if pim.bandwidth.relative else 1.0)
    fast = xpu.flops.value * (wide if xpu.flops.relative else 1.0)
    slow = pim.flops.value * (near if pim.flops.relative else 1.0)
    return Device(
        Processor(fast * xpu.compute_efficiency, wide * xpu.bandwidth_efficiency),
        Processor(slow * pim.compute_efficiency, near * pim.bandwidth_efficiency),
        pim.layers,
    )


def expert_seconds(tokens: Any, work: Expert, processor: Processor) -> Times:
    """Of each expert with so many tokens: the paper's table of times by tokens. An expert without tokens is not read."""
    found = processor.seconds(tokens * work.flops, work.weight_bytes + tokens * work.token_bytes)
    return np.where(tokens > 0, found, 0.0)


@final
@dataclass(frozen=True)
class Split:
    """Of a layer's experts, by tokens ascending: the first ``count`` are on Logic-PIM. Seconds that each processor is busy;
    arrays of the shape of the layers."""

    count: Any
    xpu: Times
    pim: Times

    @property
    def seconds(self) -> Times:
        return np.maximum(self.xpu, self.pim)


def split(xpu: Times, pim: Times) -> Split:
    """Split experts ``[..., experts]``, ordered by tokens ascending, where the longer of both processors is shortest.

    With ``s`` of them on Logic-PIM its time ``sum pim[:s]`` grows with s and the xPU's ``sum xpu[s:]`` shrinks, so that the
    paper's way, moving one expert after the other until it no longer helps, finds the best of all s. All s are looked at here.
    """
    near = _ends(pim)
    far = _ends(xpu)
    far = far[..., -1:] - far
    best = np.maximum(near, far).argmin(-1)[..., None]
    return Split(best[..., 0], *(np.take_along_axis(t, best, -1)[..., 0] for t in (far, near)))


def split_by_space(xpu: Times, pim: Times, spaces: int) -> tuple[Any, Times, Times]:
    """The best of all ways to give each of the memory's ``spaces`` to one processor; expert ``e`` lies in space ``e % spaces``.

    Returns which experts are on Logic-PIM, in their own order, and the seconds of the xPU and of Logic-PIM.
    """
    space = np.arange(xpu.shape[-1]) % spaces
    ways = (np.arange(2**spaces)[:, None] >> np.arange(spaces)) & 1  # [ways, spaces]
    taken = ways[:, space].astype(np.float64)  # [ways, experts]
    near, far = pim @ taken.T, xpu @ (1 - taken).T
    best = np.maximum(near, far).argmin(-1)
    picked = best[..., None]
    return taken[best] > 0, *(np.take_along_axis(t, picked, -1)[..., 0] for t in (far, near))


def _ends(each: Times) -> Times:
    """Sums of the first 0, 1, … of the last axis."""
    return np.concatenate([np.zeros((*each.shape[:-1], 1)), each.cumsum(-1)], -1)
