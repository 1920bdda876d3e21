"""What a stage costs under a scheme: seconds, and the work that they are made of, of all its layers.

A stage is one step of continuous batching: every decoding request gets a token, and prompts are read. Costs are arrays whose
last axis holds :data:`QUANTITIES`: seconds of the stage; seconds in which a device's xPU and Logic-PIM are busy; operations and
bytes on all devices; bytes that devices send.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np

from nett.experts.duplex import Device, device_of, expert_seconds, split, split_by_space
from nett.experts.duplex_reading import Setup
from nett.experts.duplex_routing import draws, grid, popularity, realised
from nett.experts.duplex_settings import Scheme
from nett.experts.duplex_work import Product, attention, expert, products

QUANTITIES = (
    "seconds", "xpu_busy", "pim_busy", "xpu_flops", "pim_flops", "xpu_bytes", "pim_bytes", "link_bytes", "node_link_bytes",
)  # fmt: skip
KINDS = ("fc", "attention", "experts", "link")
TIMES = 8  # realisations of the routing that stages take in turn
Array = Any


@final
@dataclass(frozen=True)
class Stage:
    """What is in a stage, or in many (arrays): decoding requests and their contexts in all; prompts that are read, their
    tokens, the pairs of a token and one that it looks at, the tokens looked at; prompts that end, and so give a token."""

    decoding: Array
    contexts: Array
    prompts: Array
    tokens: Array
    pairs: Array
    keys: Array
    ended: Array


def _together(on_pim: Array, xpu: Array, pim: Array, flops: Array, moved: Array) -> Array:
    """Layers of which each is computed by one processor."""
    near, far = np.where(on_pim, pim, 0.0), np.where(on_pim, 0.0, xpu)
    of_pim = np.asarray(on_pim, np.float64)
    rows = (near + far, far, near, flops * (1 - of_pim), flops * of_pim, moved * (1 - of_pim), moved * of_pim)
    zero = np.zeros(np.shape(near))
    return np.stack(np.broadcast_arrays(*rows, zero, zero), -1)


@final
class Layers:
    """How tokens are spread over the experts of a model, for all schemes alike: drawn once."""

    def __init__(self, setup: Setup, most: int) -> None:
        model, routing = setup.model, setup.settings.routing
        self.tokens = grid(most)
        if not model.moe_layers:
            return
        shares = popularity(routing, model, setup.folder)
        self.counts = draws(shares, model.top_k, self.tokens, routing.seed)
        self.chosen = realised(len(shares), len(self.counts), model.moe_layers, TIMES, routing.seed)


@final
class Costs:
    """Of one scheme."""

    def __init__(self, setup: Setup, scheme: Scheme, layers: Layers) -> None:
        hardware, serving = setup.settings.hardware, setup.settings.serving
        self.setup, self.scheme, self.layers = setup, scheme, layers
        self.model, self.size, self.hardware = setup.model, setup.settings.bytes, hardware
        self.device: Device = device_of(hardware)
        self.devices, self.nodes = hardware.devices, hardware.nodes
        everywhere = self.devices * self.nodes
        self.groups = self.nodes if serving.experts == "tensor" else min(max(self.model.experts, 1), everywhere)
        self.spaces = serving.spaces
        self.products = [p for p in products(self.model, self.devices) if p.name != "head"]
        self.head = [p for p in products(self.model, self.devices) if p.name == "head"]
        self.attention = attention(self.model, self.devices, self.size)

    # what is shared by all tokens

    def fc(self, product: Product, tokens: Array, mean: Array) -> Array:
        """``tokens`` of the node that has most, ``mean`` of all nodes."""
        flops, moved = product.flops(tokens), product.bytes(tokens, self.size)
        xpu, pim = self.device.xpu.seconds(flops, moved), self.device.pim.seconds(flops, moved)
        on_pim = self.device.on_pim(self.scheme, "fc", xpu, pim)
        every = self.devices * self.nodes
        return _together(on_pim, xpu, pim, every * product.flops(mean), every * product.bytes(mean, self.size))

    def link(self, tokens: Array, mean: Array) -> Array:
        """Sums over a node's devices after attention and after the experts or MLP, in a ring; tokens sent to experts on other
        nodes and back."""
        found = np.zeros((*np.shape(tokens), len(QUANTITIES)))
        some = np.asarray(tokens) > 0
        row = self.model.hidden * self.size.activations
        d, n = self.devices, self.nodes
        if d > 1:
            wire, sums = self.hardware.link, 2 * self.model.layers
            hop = wire.latency.value + tokens * row / d / wire.bandwidth.value
            found[..., 0] += np.where(some, sums * 2 * (d - 1) * hop, 0.0)
            found[..., 7] += sums * 2 * (d - 1) * mean * row * n
        if n > 1 and self.model.moe_layers:
            wire, trips = self.hardware.node_link, 2 * self.model.moe_layers
            sent = self.model.top_k * row * (n - 1) / n / d
            found[..., 0] += np.where(some, trips * (wire.latency.value + tokens * sent / wire.bandwidth.value), 0.0)
            found[..., 8] += trips * mean * sent * d * n
        return found

    # attention

    def attend(self, stage: Stage) -> Array:
        """Of decoding requests and prompts; one after the other, or at the same time where that is faster."""
        a, n = self.attention, self.nodes
        decoded = a.context_flops * stage.contexts, a.context_bytes * stage.contexts + a.request_bytes * stage.decoding
        read = a.pair_flops * stage.pairs, a.key_bytes * stage.keys + a.token_bytes * stage.tokens
        share = self._share(stage.prompts)
        decode = self._attention(*decoded, 1 / n)
        prompt = self._attention(*read, share)
        found = decode + prompt
        if self.scheme not in ("attention", "duplex") or "attention" not in self.device.layers:
            return found
        near = self._attention(*decoded, 1 / n, on_pim=True)
        far = self._attention(*read, share, on_pim=False)
        both = near + far
        both[..., 0] = np.maximum(near[..., 0], far[..., 0])
        return np.where((both[..., :1] < found[..., :1]), both, found)

    def _share(self, prompts: Array) -> Array:
        """Of a stage's prompts, those of the node that has most."""
        return np.ceil(np.asarray(prompts) / self.nodes) / np.maximum(prompts, 1)

    def _attention(self, flops: Array, moved: Array, share: Array, *, on_pim: bool | None = None) -> Array:
        """``share``: of all nodes' work, that of the node that has most. ``on_pim``: by whom; None for who is faster."""
        xpu = self.device.xpu.seconds(flops * share, moved * share)
        pim = self.device.pim.seconds(flops * share, moved * share)
        chosen = self.device.on_pim(self.scheme, "attention", xpu, pim) if on_pim is None else on_pim
        return _together(np.broadcast_to(chosen, np.shape(xpu)), xpu, pim, flops * self.devices, moved * self.devices)

    # experts

    def experts(self, counts: Array) -> Array:
        """Of layers with so many tokens ``[..., experts]``: each group of devices computes its experts, the slowest is waited
        for."""
        width = self.devices * self.nodes / self.groups
        work = expert(self.model, 1 / width, self.size)
        held = -(-counts.shape[-1] // self.groups)
        pad = [(0, 0)] * (counts.ndim - 1) + [(0, held * self.groups - counts.shape[-1])]
        tokens = np.pad(counts, pad).reshape(*counts.shape[:-1], self.groups, held)
        if not self.spaces:  # where an expert lies does not matter
            tokens = np.sort(tokens, axis=-1)
        xpu, pim = (expert_seconds(tokens, work, p) for p in (self.device.xpu, self.device.pim))
        on_pim, far, near = self._split(xpu, pim)
        flops = tokens * work.flops * width
        moved = np.where(tokens > 0, work.weight_bytes + tokens * work.token_bytes, 0.0) * width
        sums = [(v * m).sum((-1, -2)) for v in (flops, moved) for m in (~on_pim, on_pim)]
        zero = np.zeros(far.shape[:-1])
        return np.stack([np.maximum(far, near).max(-1), far.mean(-1), near.mean(-1), *sums, zero, zero], -1)

    def _split(self, xpu: Array, pim: Array) -> tuple[Array, Array, Array]:
        """Which experts are on Logic-PIM, and the seconds of the xPU and of Logic-PIM."""
        if self.scheme in ("experts", "duplex") and "experts" in self.device.layers:
            if self.spaces:
                return split_by_space(xpu, pim, self.spaces)
            found = split(xpu, pim)
            return np.arange(xpu.shape[-1]) < found.count[..., None], found.xpu, found.pim
        far, near = xpu.sum(-1), pim.sum(-1)
        on_pim = self.device.on_pim(self.scheme, "experts", far, near)
        whole = np.broadcast_to(on_pim[..., None], xpu.shape)
        return whole, np.where(on_pim, 0.0, far), np.where(on_pim, near, 0.0)

    @cached_property
    def table(self) -> Array:
        """Of all layers with experts, ``[TIMES, tokens of the grid, quantities]``."""
        if not self.model.moe_layers:
            return np.zeros((TIMES, len(self.layers.tokens), len(QUANTITIES)))
        each = np.stack([self.experts(c) for c in self.layers.counts])
        return np.stack([each[chosen].sum(0) for chosen in self.layers.chosen])

    def routed(self, tokens: Array, turn: Array) -> Array:
        """Of stages with so many tokens on all nodes, in the realisation of their ``turn``."""
        known = self.layers.tokens
        after = np.clip(np.searchsorted(known, tokens, side="right"), 1, len(known) - 1)
        part = ((tokens - known[after - 1]) / (known[after] - known[after - 1]))[..., None]
        return (1 - part) * self.table[turn, after - 1] + part * self.table[turn, after]

    # stages

    def of(self, stage: Stage, turn: Array) -> dict[str, Array]:
        """Costs of stages by kind of layer."""
        share, n = self._share(stage.prompts), self.nodes
        most = np.ceil(np.asarray(stage.decoding) / n) + stage.tokens * share
        mean = (stage.decoding + stage.tokens) / n
        asked = (stage.decoding + stage.ended) / n
        fc = sum((self.fc(p, most, mean) for p in self.products), np.zeros((*np.shape(most), len(QUANTITIES))))
        fc = fc + sum((self.fc(p, np.ceil(asked), asked) for p in self.head), np.zeros_like(fc))
        total = np.asarray(stage.decoding + stage.tokens)
        return {
            "fc": fc, "attention": self.attend(stage), "experts": self.routed(total, turn), "link": self.link(most, mean),
        }  # fmt: skip
