"""The figures of a run: tokens a second, waiting times and their percentiles, energy, how busy processors were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nett.experts.duplex_costs import KINDS, QUANTITIES, Costs
from nett.experts.duplex_requests import Trace
from nett.experts.duplex_settings import Hardware
from nett.experts.duplex_stages import Served

PERCENTILES = (50, 90, 99)
Array = Any


def energy(cost: Array, hardware: Hardware) -> Array:
    """Joules of costs ``[..., quantities]``, without static power."""
    x, p = hardware.xpu, hardware.pim
    prices = {
        "xpu_flops": x.energy_per_flop, "pim_flops": p.energy_per_flop,
        "xpu_bytes": x.energy_per_byte, "pim_bytes": p.energy_per_byte,
        "link_bytes": hardware.link.energy_per_byte, "node_link_bytes": hardware.node_link.energy_per_byte,
    }  # fmt: skip
    return cost @ np.array([prices[q].value if q in prices else 0.0 for q in QUANTITIES])


def weighted_percentile(values: Array, weights: Array, percent: float) -> float:
    """The least of ``values`` such that ``percent`` of the weight is on it and on smaller ones."""
    order = np.argsort(values, kind="stable")
    passed = weights[order].cumsum()
    if not len(passed) or not passed[-1]:
        return float("nan")
    place = np.searchsorted(passed, passed[-1] * percent / 100 * (1 - 1e-12))
    return float(values[order][place])


def window(trace: Trace, served: Served, batch: int) -> tuple[float, float]:
    """Seconds between which a run counts. With arrivals: all of it. Closed: while the batch is full and no longer in step, from
    when as many requests as it holds are done until the last is let in; all of it where there are too few."""
    end = float(served.begin[-1] + served.seconds[-1])
    if trace.closed and len(trace) >= 3 * batch:
        low, high = float(np.sort(served.last)[batch - 1]), float(served.admitted.max())
        if high > low:
            return low, high
    return float(served.begin[0]), end


def figures_of(costs: Costs, trace: Trace, served: Served) -> dict[str, Any]:
    """Of one scheme; times in seconds, energy in joules a token that was given."""
    setup = costs.setup
    low, high = window(trace, served, setup.settings.serving.batch)
    end = served.begin + served.seconds
    inside = (end > low) & (end <= high)
    stages = served.stages
    given = float((stages.decoding + stages.ended)[inside].sum())
    parts = costs.of(stages, served.turn)
    sums = {k: parts[k][inside].sum(0) for k in KINDS}
    whole = sum(sums.values())
    span = float(served.seconds[inside].sum())  # without pauses
    hardware = setup.settings.hardware
    every = hardware.devices * hardware.nodes
    static = hardware.static_power.value * every * (high - low)
    dynamic = {k: float(energy(v, hardware)) for k, v in sums.items()}
    came = served.admitted if trace.closed else trace.arrival
    counted = (came >= low) & (came <= high) if trace.closed else np.full(len(trace), True)
    waits = {"first_token": served.first - came, "end_to_end": served.last - came}
    found: dict[str, Any] = {
        "tokens_a_second": given / (high - low),
        "requests_a_second": float(((served.last > low) & (served.last <= high)).sum()) / (high - low),
        "seconds_counted": high - low,
        "seconds_in_all": served.span,
        "stages": len(served.seconds),
        "mixed_stages": float((stages.prompts > 0)[inside].mean()) if inside.any() else 0.0,
        "mean_batch": float(np.average((stages.decoding + stages.prompts)[inside], weights=served.seconds[inside])),
        "between_tokens": _spread(served.seconds[inside], stages.decoding[inside]),
        **{n: _spread(w[counted], np.ones(int(counted.sum()))) for n, w in waits.items()},
        "joules_a_token": (sum(dynamic.values()) + static) / given,
        "joules_a_token_by": {k: v / given for k, v in dynamic.items()}
        | ({"static": static / given} if static else {}),
        "seconds_by": {k: float(v[0]) / span for k, v in sums.items()},
        "use": _use(whole, costs, span, every),
    }
    return found


def _spread(values: Array, weights: Array) -> dict[str, float]:
    return {f"p{p}": weighted_percentile(values, weights, p) for p in PERCENTILES}


def _use(whole: Array, costs: Costs, span: float, every: int) -> dict[str, float]:
    """Shares of the time that stages took: busy; operations and bytes of those that peak rates would have allowed."""
    q: Mapping[str, float] = dict(zip(QUANTITIES, whole.tolist(), strict=True))
    xpu, pim = costs.device.xpu, costs.device.pim
    return {
        "xpu_busy": q["xpu_busy"] / span,
        "pim_busy": q["pim_busy"] / span,
        "xpu_compute": q["xpu_flops"] / (xpu.flops * every * span),
        "pim_compute": q["pim_flops"] / (pim.flops * every * span),
        "xpu_bandwidth": q["xpu_bytes"] / (xpu.bandwidth * every * span),
        "pim_bandwidth": q["pim_bytes"] / (pim.bandwidth * every * span),
    }
