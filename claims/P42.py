"""P42, Duplex: does logic near memory beside an xPU give so much more throughput for so much less energy?

The paper's configurations (its table I and section VI): Mixtral on one node of 4 devices, GLaM on one of 8, Grok-1 on two of 8;
batches of 32, 64 and 128 that stay full; prompts and answers of 256, 1024 and 4096 tokens (GLaM: 512, 1024, 2048), drawn from
normal distributions whose width the paper does not give (here a tenth of the mean); experts chosen evenly; half precision; an xPU
like an H100, Logic-PIM with 4 times its bandwidth and 8 operations a byte. In the paper, experts are whole on one device but for
the last way, all layers but attention and experts stay on the xPU, and energy is that of memory and of operations, links left out.
There a cycle-accurate simulator gave the times, here rooflines do. Ways: GPU; 2xGPU (twice the devices); Duplex (the faster
processor for each layer); Duplex+PE (experts and attention on both at the same time); Duplex+PE+ET (and every expert cut over all
devices of a node). A run counts while its batch is full.

The rule of the verdict (written from the paper before any number was known; a cell is a model, a batch and a length, its value the
mean over the seeds):

1. Throughput of Duplex+PE+ET over that of the GPU: the largest of all cells is within 15 % of 2.67, the mean within 15 % of 2.07.
2. Energy a token saved: the largest of all cells is within 15 % of 42.03 %, the mean within 15 % of 28.19 %.
3. At every cell Duplex+PE+ET is as fast as Duplex+PE or faster, that as Duplex, and Duplex is faster than the GPU (1 % of
   tolerance for the first two).
4. Duplex+PE+ET is faster than 2xGPU at more than half of the cells.
5. Logic-PIM is better than PIM in the banks (16 times the bandwidth, 1 operation a byte) for Mixtral: in the mean over batches of 32
   and 64, with the faster processor for each layer.
6. GLaM at a batch of 64: the median time between tokens falls by a mean within 15 % of 58.3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.claims import Check, Figure, Result
from nett.experts.duplex_costs import Layers
from nett.experts.duplex_dimensions import Dimensions
from nett.experts.duplex_reading import Setup
from nett.experts.duplex_requests import Trace, trace_of
from nett.experts.duplex_running import memory_of, most_tokens
from nett.experts.duplex_running import run as run_schemes
from nett.experts.duplex_settings import Settings

PAPER = "P42"
CLAIM = (
    "A device with an xPU and logic near its memory, which gives each layer to the faster one and splits experts and attention "
    "over both, serves mixtures of experts with up to 2.67 times the throughput of a GPU and 42 % less energy."
)
METHODS = ["experts/simulate"]

MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": {"layers": 32, "hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8, "experts": 8, "top_k": 2,
                "vocabulary": 32000},
    "GLaM": {"layers": 32, "hidden": 4096, "intermediate": 16384, "heads": 32, "experts": 64, "top_k": 2, "moe_layers": 16,
             "gated": False, "vocabulary": 256000},
    "Grok-1": {"layers": 64, "hidden": 6144, "intermediate": 32768, "heads": 48, "kv_heads": 8, "experts": 8, "top_k": 2,
               "vocabulary": 131072},
}  # fmt: skip
DEVICES = {"Mixtral": (1, 4), "GLaM": (1, 8), "Grok-1": (2, 8)}  # nodes, devices of a node
TWICE = {"Mixtral": (1, 8), "GLaM": (2, 8), "Grok-1": (4, 8)}
LENGTHS = {"Mixtral": (256, 1024, 4096), "GLaM": (512, 1024, 2048), "Grok-1": (256, 1024, 4096)}
BATCHES = (32, 64, 128)
GPU, TWO, DUPLEX, PE, ET, BANK = "GPU", "2xGPU", "Duplex", "Duplex+PE", "Duplex+PE+ET", "PIM in the banks"
WAYS = {GPU: ("gpu", "expert"), TWO: ("gpu", "expert"), DUPLEX: ("best", "expert"), PE: ("duplex", "expert"), ET: ("duplex", "tensor"), BANK: ("best", "expert")}  # fmt: skip
WHAT_IF: dict[
    str, tuple[str, dict[str, Any]]
] = {  # looked at for the causes, on the first seed, by the GPU and by the last way
    "a hop between devices takes 3 us and not 0.8": ("link", {"latency": "3 us"}),
    "Logic-PIM reaches three quarters of its bandwidth": ("pim", {"bandwidth_efficiency": 0.75}),
}
BATCHES_FULL = 4  # requests of a run, in batches
NEAR = 0.15
Cell = tuple[str, int, int]
Say = Callable[[str], None]


def settings(cell: Cell, way: str, seed: int, what_if: str = "") -> Settings:
    """What a cell and a way come to."""
    model, batch, length = cell
    nodes, devices = (TWICE if way == TWO else DEVICES)[model]
    free = {"energy_per_byte": "0 J/B"}
    pim: dict[str, Any] = {"layers": ("attention", "experts")}
    if way == BANK:
        pim |= {"bandwidth": "16x", "flops": "1 FLOP/B"}
    hardware: dict[str, Any] = {"nodes": nodes, "devices": devices, "pim": pim, "link": free,
                                "node_link": {**free, "bandwidth": "50 GB/s", "latency": "0.13 us"}}  # fmt: skip
    if what_if:
        part, changed = WHAT_IF[what_if]
        hardware[part] = {**hardware[part], **changed}
    lengths = {"mean": length, "std": length / 10}
    return Settings.model_validate(
        {
            "model": MODELS[model],
            "hardware": hardware,
            "routing": {"seed": seed},
            "requests": {"count": BATCHES_FULL * batch, "input": lengths, "output": lengths, "seed": seed},
            "serving": {"batch": batch, "experts": WAYS[way][1], "memory_share": 1.0},
        }
    )  # fmt: skip


@cache
def layers_of(cell: Cell, seed: int) -> Layers:
    """How tokens are spread over experts; the same for all ways."""
    setup, trace = _setup(cell, GPU, seed)
    return Layers(setup, most_tokens(setup, trace))


def _setup(cell: Cell, way: str, seed: int, what_if: str = "") -> tuple[Setup, Trace]:
    chosen = settings(cell, way, seed, what_if)
    assert isinstance(chosen.model, Dimensions)
    return Setup(chosen, chosen.model, Path()), trace_of(chosen.requests, Path())


def figures_of(cell: Cell, way: str, seed: int, what_if: str = "") -> dict[str, Any]:
    setup, trace = _setup(cell, way, seed, what_if)
    scheme: Any = WAYS[way][0]
    return run_schemes(setup, trace, layers_of(cell, seed), memory_of(setup, trace)["tokens"], [scheme])[scheme]


class Found:
    """Of every cell and way, the mean over the seeds."""

    def __init__(self) -> None:
        self.rows: dict[Cell, dict[str, list[dict[str, Any]]]] = {}
        self.what_if: dict[str, dict[Cell, dict[str, dict[str, Any]]]] = {w: {} for w in WHAT_IF}

    def mean(self, cell: Cell, way: str, key: str) -> float:
        rows = self.rows[cell][way]
        return float(np.mean([r["between_tokens"]["p50"] if key == "between" else r[key] for r in rows]))

    def ratio(self, cell: Cell, way: str, over: str = GPU) -> float:
        return self.mean(cell, way, "tokens_a_second") / self.mean(cell, over, "tokens_a_second")

    def saved(self, cell: Cell, key: str = "joules_a_token") -> float:
        """Percent, by Duplex+PE+ET."""
        return 100 * (1 - self.mean(cell, ET, key) / self.mean(cell, GPU, key))


def run(seeds: Sequence[int], progress: Say) -> Result:
    """The experiment; it needs nothing but nett."""
    found, figures = Found(), list[Figure]()
    for model in MODELS:
        for batch in BATCHES:
            for length in LENGTHS[model]:
                cell = (model, batch, length)
                ways = [w for w in WAYS if w != BANK or (model == "Mixtral" and batch < 128)]
                found.rows[cell] = {w: [figures_of(cell, w, s) for s in seeds] for w in ways}
                for name in WHAT_IF:
                    found.what_if[name][cell] = {w: figures_of(cell, w, seeds[0], name) for w in (GPU, ET)}
                layers_of.cache_clear()
                figures += _figures(cell, seeds, found)
                said = ", ".join(f"{w} {found.ratio(cell, w):.2f}" for w in ways if w != GPU)
                progress(f"{model} batch {batch}, {length} tokens: {said}; {found.saved(cell):.1f} % less energy")
    return Result(_checks(found), figures, [], {}, _because(found))


def _figures(cell: Cell, seeds: Sequence[int], found: Found) -> list[Figure]:
    rows = []
    for way, runs in found.rows[cell].items():
        for seed, told in zip(seeds, runs, strict=True):
            place = (cell[0], f"batch {cell[1]}, {cell[2]} tokens", seed)
            rows += [
                Figure(*place, f"{way}, throughput", told["tokens_a_second"], "tokens/s"),
                Figure(*place, f"{way}, energy", 1e3 * told["joules_a_token"], "mJ a token"),
                Figure(*place, f"{way}, between tokens (p50)", 1e3 * told["between_tokens"]["p50"], "ms"),
                Figure(*place, f"{way}, first token (p50)", 1e3 * told["first_token"]["p50"], "ms"),
            ]
    return rows


def _near(value: float, paper: float) -> bool:
    return abs(value - paper) <= NEAR * paper


def _best(values: dict[Cell, float]) -> tuple[Cell, float]:
    cell = max(values, key=lambda c: values[c])
    return cell, values[cell]


def _said(cell: Cell) -> str:
    return f"{cell[0]}, batch {cell[1]}, {cell[2]} tokens"


def _checks(found: Found) -> list[Check]:
    cells = list(found.rows)
    ratios, saved = {c: found.ratio(c, ET) for c in cells}, {c: found.saved(c) for c in cells}
    (fast, most), (thrifty, least) = _best(ratios), _best(saved)
    mean, mean_saved = float(np.mean(list(ratios.values()))), float(np.mean(list(saved.values())))
    unordered = [
        c
        for c in cells
        if found.ratio(c, ET, PE) < 0.99 or found.ratio(c, PE, DUPLEX) < 0.99 or found.ratio(c, DUPLEX) <= 1
    ]
    ahead = sum(found.ratio(c, ET, TWO) > 1 for c in cells)
    banks = [found.ratio(c, DUPLEX, BANK) for c in cells if BANK in found.rows[c]]
    waits = [found.saved(c, "between") for c in cells if c[:2] == ("GLaM", 64)]
    return [
        Check(
            "throughput: the largest within 15 % of 2.67, the mean within 15 % of 2.07",
            _near(most, 2.67) and _near(mean, 2.07),
            f"largest {most:.2f} ({_said(fast)}), mean {mean:.2f}; {_by_model(ratios, '.2f')}",
        ),
        Check(
            "energy saved: the largest within 15 % of 42.03 %, the mean within 15 % of 28.19 %",
            _near(least, 42.03) and _near(mean_saved, 28.19),
            f"largest {least:.1f} % ({_said(thrifty)}), mean {mean_saved:.1f} %; {_by_model(saved, '.1f')}",
        ),
        Check(
            "GPU < Duplex <= Duplex+PE <= Duplex+PE+ET at every cell",
            not unordered,
            f"not so at {len(unordered)} of {len(cells)}" + "".join(f"; {_said(c)}" for c in unordered[:6]),
        ),
        Check("faster than 2xGPU at more than half of the cells", ahead > len(cells) / 2, f"{ahead} of {len(cells)}"),
        Check(
            "Logic-PIM better than PIM in the banks for Mixtral (mean)",
            float(np.mean(banks)) > 1,
            f"mean {np.mean(banks):.2f}, {min(banks):.2f} to {max(banks):.2f} (the paper: mean 1.49, at most 1.80)",
        ),
        Check(
            "GLaM, batch 64: the median time between tokens falls by a mean within 15 % of 58.3 %",
            _near(float(np.mean(waits)), 58.3),
            f"mean {np.mean(waits):.1f} %",
        ),
    ]


def _by_model(values: dict[Cell, float], form: str) -> str:
    each = {m: [v for c, v in values.items() if c[0] == m] for m in MODELS}
    return "; ".join(f"{m} {min(v):{form}} to {max(v):{form}}" for m, v in each.items())


def _because(found: Found) -> list[str]:
    """Where it differs from the paper, from what was measured in this run alone."""
    ratios = {c: found.ratio(c, ET) for c in found.rows}
    cell, most = _best(ratios)
    mean = float(np.mean(list(ratios.values())))
    if _near(most, 2.67) and _near(mean, 2.07):
        return []
    parts = [f"{w} {_parts(found.rows[cell][w])}" for w in (GPU, ET)]
    said = [f"Where the ratio is largest ({_said(cell)}, {most:.2f}) a stage's time goes to: {'; '.join(parts)}."]
    for name, rows in found.what_if.items():
        changed = {c: of[ET]["tokens_a_second"] / of[GPU]["tokens_a_second"] for c, of in rows.items()}
        saved = [100 * (1 - of[ET]["joules_a_token"] / of[GPU]["joules_a_token"]) for of in rows.values()]
        waits = [
            100 * (1 - of[ET]["between_tokens"]["p50"] / of[GPU]["between_tokens"]["p50"])
            for c, of in rows.items()
            if c[:2] == ("GLaM", 64)
        ]
        said.append(
            f"If {name}: largest {max(changed.values()):.2f}, mean {np.mean(list(changed.values())):.2f}; energy saved at most "
            f"{max(saved):.1f} %; GLaM at 64, median time between tokens {np.mean(waits):.1f} % less."
        )
    return said


def _parts(runs: Sequence[dict[str, Any]]) -> str:
    shares = {k: 100 * float(np.mean([r["seconds_by"][k] for r in runs])) for k in runs[0]["seconds_by"]}
    return ", ".join(f"{k} {v:.0f} %" for k, v in shares.items())
