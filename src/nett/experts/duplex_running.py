"""A simulation from its settings: what fits, all schemes on the same trace, and one thing changed at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.errors import NettError, Refused, UsageError
from nett.core.jsonable import jsonable
from nett.core.progress import report
from nett.experts.duplex import device_of
from nett.experts.duplex_clock import clock
from nett.experts.duplex_costs import Costs, Layers
from nett.experts.duplex_figures import figures_of
from nett.experts.duplex_layers import layer_rows
from nett.experts.duplex_reading import Setup, read_settings
from nett.experts.duplex_requests import Trace, trace_of
from nett.experts.duplex_settings import Scheme
from nett.experts.duplex_stages import serve
from nett.experts.duplex_work import cache_bytes, weight_bytes


def simulate_file(file: Path, *, sweep: bool = False) -> dict[str, Any]:
    """Findings of the settings in ``file``, as plain JSON."""
    setup = read_settings(file)
    trace = trace_of(setup.settings.requests, setup.folder)
    held = memory_of(setup, trace)
    layers = Layers(setup, most_tokens(setup, trace))
    told: dict[str, Any] = {
        "settings": str(file),
        "model": setup.model.model_dump(exclude_none=True),
        "hardware": hardware_of(setup),
        "memory": held,
        "requests": {
            "count": len(trace),
            "input": float(np.mean(trace.input)),
            "output": float(np.mean(trace.output)),
            "arrivals": "file" if setup.settings.requests.file else setup.settings.requests.arrivals,
        },
        "schemes": run(setup, trace, layers, held["tokens"]),
        "layers": layer_rows(setup, trace, layers),
        "notes": [*setup.notes, *notes_of(setup, trace)],
    }
    if sweep:
        told["sweep"] = swept(setup)
    found: dict[str, Any] = jsonable(told)  # nothing between tokens where answers have one
    return found


def run(
    setup: Setup, trace: Trace, layers: Layers, room: int, schemes: Sequence[Scheme] | None = None
) -> dict[str, dict[str, Any]]:
    """Figures of each scheme, on the same requests and the same routing."""
    found: dict[str, dict[str, Any]] = {}
    serving = setup.settings.serving
    for scheme in schemes or setup.settings.schemes:
        costs = Costs(setup, scheme, layers)
        clocked = clock(costs, serving.batch, most_tokens(setup, trace))
        served = serve(trace, clocked, batch=serving.batch, room=room, chunk=serving.chunk)
        found[scheme] = figures_of(costs, trace, served)
    return found


def most_tokens(setup: Setup, trace: Trace) -> int:
    """Of a stage at most: a token of each request, and the prompts of the longest ones."""
    serving = setup.settings.serving
    longest = np.sort(trace.input)[::-1][: serving.batch].sum()
    return int(serving.batch + (min(serving.chunk, longest) if serving.chunk else longest))


def memory_of(setup: Setup, trace: Trace) -> dict[str, Any]:
    """Bytes of weights, and tokens whose keys and values fit beside them; Refused where they or a request do not."""
    settings, size = setup.settings, setup.settings.bytes
    hardware = settings.hardware
    whole = hardware.memory.value * hardware.devices * hardware.nodes
    share = settings.serving.memory_share
    weights = weight_bytes(setup.model, hardware.nodes, size)
    each = cache_bytes(setup.model, hardware.devices, size)
    room = int((whole * share - weights) / each)
    longest = int((trace.input + trace.output).max())
    if room < longest:
        needed = math.ceil((weights + longest * each) / (share * hardware.memory.value * hardware.nodes))
        raise Refused(
            f"the weights take {weights / 1e9:,.1f} GB, and the longest request ({longest:,} tokens) {longest * each / 1e9:,.2f}"
            f" GB; {share:g} of {hardware.devices * hardware.nodes} x {hardware.memory.value / 1e9:,.1f} GB may be filled",
            where="experts/simulate",
            hint=f"hardware: {{devices: {needed}}} a node would hold them.",
        )
    return {"weight_bytes": weights, "cache_bytes_a_token": each, "bytes": whole, "tokens": room}


def hardware_of(setup: Setup) -> dict[str, Any]:
    """Rates as they are reached, and energies."""
    hardware = setup.settings.hardware
    device = device_of(hardware)
    return {
        "devices": hardware.devices,
        "nodes": hardware.nodes,
        **{
            name: {
                "flops": rates.flops,
                "bandwidth": rates.bandwidth,
                "joules_a_flop": of.energy_per_flop.value,
                "joules_a_byte": of.energy_per_byte.value,
            }
            for name, rates, of in (("xpu", device.xpu, hardware.xpu), ("pim", device.pim, hardware.pim))
        },
    }


def notes_of(setup: Setup, trace: Trace) -> Iterator[str]:
    """What a reader should know of this run."""
    serving = setup.settings.serving
    if trace.closed and len(trace) < 3 * serving.batch:
        yield f"{len(trace)} requests are fewer than three batches of {serving.batch}: start and end of the run count as well"
    if setup.settings.requests.file and setup.settings.requests.rate:
        yield "arrivals come from the file: rate has no effect"


def swept(setup: Setup) -> dict[str, list[dict[str, Any]]]:
    """Variable -> rows of its value, and tokens a second and joules a token of each scheme; or why a value was left out."""
    points = list(_points(setup))
    report.begin("sweep", len(points), unit="settings")
    found: dict[str, list[dict[str, Any]]] = {}
    for name, shown, changed in points:
        row: dict[str, Any] = {"value": shown}
        try:
            trace = trace_of(changed.settings.requests, changed.folder)
            room = memory_of(changed, trace)["tokens"]
            done = run(changed, trace, Layers(changed, most_tokens(changed, trace)), room)
            row |= {k: {s: f[k] for s, f in done.items()} for k in ("tokens_a_second", "joules_a_token")}
            row["between_tokens"] = {s: f["between_tokens"]["p50"] for s, f in done.items()}
        except NettError as error:
            row["left_out"] = error.what
        found.setdefault(name, []).append(row)
        report.step(1)
    report.end()
    return found


def _points(setup: Setup) -> Iterator[tuple[str, float, Setup]]:
    """Name of what changes, its value, and the settings with it; with as many requests as the sweep says."""
    settings = setup.settings
    sweep, own = settings.sweep, settings.requests
    if own.file is None:
        settings = settings.model_copy(
            update={"requests": own.model_copy(update={"count": min(own.count, sweep.requests)})}
        )

    def changed(part: str, **values: Any) -> Setup:
        piece = getattr(settings, part).model_copy(update=values)
        return replace(setup, settings=settings.model_copy(update={part: piece}))

    for batch in sweep.batch:
        yield "batch", batch, changed("serving", batch=batch)
    for name in ("input", "output") if own.file is None else ():
        lengths = getattr(own, name)
        for mean in getattr(sweep, name):
            scaled = lengths.std * mean / lengths.middle
            yield name, mean, changed("requests", **{name: type(lengths)(mean=mean, std=scaled)})
    for count in sweep.experts if setup.model.moe_layers and settings.routing.by != "file" else ():
        if count >= setup.model.top_k:
            wide = max(1, round(setup.model.intermediate * setup.model.experts / count))
            model = setup.model.model_copy(update={"experts": count, "intermediate": wide})
            yield "experts", count, replace(setup, settings=settings, model=model)
    pim = settings.hardware.pim
    for name, values in (("bandwidth", sweep.pim_bandwidth), ("flops", sweep.pim_flops)):
        for value in values:
            hardware = {"pim": pim.model_copy(update={name: value})}
            yield f"pim_{name}", value.value, changed("hardware", **hardware)


def only(assets: Sequence[str]) -> Path:
    """The one file of settings that was named."""
    if len(assets) != 1:
        raise UsageError("name one file of settings", where="experts/simulate", hint="nett experts simulate CONFIG.yml")
    return Path(assets[0])
