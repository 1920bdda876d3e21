"""Operations a byte of every layer in two stages as the trace has them: only decoding, and with a prompt that comes in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nett.experts.duplex import expert_seconds
from nett.experts.duplex_costs import Costs, Layers
from nett.experts.duplex_reading import Setup
from nett.experts.duplex_requests import Trace
from nett.experts.duplex_work import expert

Row = dict[str, Any]


def layer_rows(setup: Setup, trace: Trace, layers: Layers) -> list[Row]:
    """Stage, layer, operations and bytes of one device, Op/B, seconds on each processor, and which is faster."""
    costs = Costs(setup, "best", layers)
    batch = min(setup.settings.serving.batch, len(trace))
    context = float(np.mean(trace.input) + np.mean(trace.output) / 2)
    prompt = min(float(np.mean(trace.input)), setup.settings.serving.chunk or np.inf)
    nodes = setup.settings.hardware.nodes
    rows = []
    for stage, tokens in (("decoding", batch), ("mixed", batch + prompt)):
        for name, kind, flops, moved, seconds in _work(costs, layers, batch, context, prompt, tokens, nodes):
            if (stage == "decoding" and name == "attention, prompt") or not moved:
                continue
            xpu, pim = seconds
            near = bool(costs.device.on_pim("best", kind, np.array(xpu), np.array(pim)))
            rows.append(
                {"stage": stage, "layer": name, "flops": flops, "bytes": moved, "op_b": flops / moved, "xpu_seconds": xpu,
                 "pim_seconds": pim, "on": "pim" if near else "xpu"}
            )  # fmt: skip
    return rows


def _work(
    costs: Costs, layers: Layers, batch: int, context: float, prompt: float, tokens: float, nodes: int
) -> Iterator[tuple[str, str, float, float, tuple[float, float]]]:
    both = costs.device.xpu, costs.device.pim

    def timed(flops: float, moved: float) -> tuple[float, float]:
        return float(both[0].seconds(flops, moved)), float(both[1].seconds(flops, moved))

    here = batch / nodes
    sums: dict[str, list[float]] = {}
    for product in [*costs.products, *costs.head]:
        passed = here if product.name == "head" else tokens / nodes
        work = sums.setdefault(product.name, [0.0, 0.0])
        work[0] += float(product.flops(passed))
        work[1] += float(product.bytes(passed, costs.size))
    a = costs.attention
    parts: dict[str, tuple[str, float, float]] = {n: ("fc", w[0], w[1]) for n, w in sums.items()}
    held = here * context
    parts["attention, decoding"] = (
        "attention",
        a.context_flops * held,
        a.context_bytes * held + a.request_bytes * here,
    )
    pairs = prompt * (prompt + 1) / 2
    parts["attention, prompt"] = ("attention", a.pair_flops * pairs, (a.key_bytes + a.token_bytes) * prompt)
    for name, (kind, flops, moved) in parts.items():
        yield name, kind, flops, moved, timed(flops, moved)
    if costs.model.moe_layers:
        yield _experts(costs, layers, int(tokens))


def _experts(costs: Costs, layers: Layers, tokens: int) -> tuple[str, str, float, float, tuple[float, float]]:
    """The layers of experts, as if each expert were cut over all devices of its node; mean over the layers drawn."""
    place = int(np.searchsorted(layers.tokens, tokens))
    counts = layers.counts[:, place] / costs.nodes
    work = expert(costs.model, 1 / costs.devices, costs.size)
    per = costs.model.moe_layers / len(counts)
    moved = np.where(counts > 0, work.weight_bytes + counts * work.token_bytes, 0.0)
    seconds = [float(expert_seconds(counts, work, p).sum() * per) for p in (costs.device.xpu, costs.device.pim)]
    return (
        "experts",
        "experts",
        float(counts.sum() * work.flops * per),
        float(moved.sum() * per),
        (seconds[0], seconds[1]),
    )
