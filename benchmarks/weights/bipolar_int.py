"""W2A2 by population count at 4096 x 4096, against torch in float32 and int8, and against counting bits and nothing else.

All take float32 inputs but ``torch._int_mm``, which is given int8 numbers and does not scale its results. Measured twice:
CPU time on one thread, which other work on the machine hardly changes and which is judged, and wall time on all cores.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measure import in_turn

from nett.core.bench import Figure, Outcome, Series, versions
from nett.core.dtypes import Array
from nett.core.errors import NettError
from nett.weights.bipolar_linear import BipolarLinear

TITLE = "bipolar integers: W2A2 products of 4096 x 4096, by population count"
SIZE, PICO = 4096, 128
INPUTS = (1, 4, 16, 64)
BITS = 2
LONG = 0.02  # seconds that a measurement takes at least
Say = Callable[[str], None]

NETT, FLOAT, INT8, DYNAMIC = "nett, W2A2", "torch float32", "torch._int_mm", "torch dynamic int8 (FBGEMM)"
COMMANDS = {
    NETT: "BipolarLinear(bits=2, activations=2), float32 in and out: rounding and packing the inputs is counted",
    FLOAT: "torch.nn.functional.linear",
    INT8: "torch._int_mm on int8 inputs: rounding them and scaling is not counted",
    DYNAMIC: "torch.ops.quantized.linear_dynamic, float32 in and out, inputs in 7 bits as torch does on processors without VNNI",
}


def run(work: Path, say: Say, pico: bool) -> Outcome:
    size, times = (PICO, 1) if pico else (SIZE, 5)
    torch.manual_seed(0)
    cores = len(os.sched_getaffinity(0))
    linear = torch.nn.Linear(size, size, bias=False)
    ours = BipolarLinear.of(linear, bits=BITS, activations=BITS, search=False)
    weight = linear.weight.detach()
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8).t()  # as a product with W^T reads it
    dynamic, skipped = _dynamic(weight)
    figures = []
    for count in (INPUTS[0], INPUTS[-1]) if pico else INPUTS:
        x = torch.randn(count, size)
        numbers = torch.randint(-127, 128, (count, size), dtype=torch.int8)
        ways: dict[str, Callable[[], Any]] = {
            NETT: partial(ours, x),
            FLOAT: partial(torch.nn.functional.linear, x, weight),
            INT8: partial(torch._int_mm, numbers, codes),
        }
        if dynamic is not None:
            ways[DYNAMIC] = partial(torch.ops.quantized.linear_dynamic, x, dynamic, True)
        _check(ours, x)
        for what, threads, clock in (
            ("CPU time on one thread", 1, time.process_time),
            ("wall time", cores, time.perf_counter),
        ):
            torch.set_num_threads(threads)
            say(f"{count} inputs, {what}")
            told = in_turn(
                {name: (times if threads == 1 else min(times, 3), _timed(way, clock)) for name, way in ways.items()},
                "ms",
                say,
            )
            found = {name: replace(series, command=COMMANDS[name]) for name, series in told.items()}
            for name in ways:
                if name != NETT:
                    bar = None if name == DYNAMIC or threads > 1 else 1.0
                    figures.append(Figure(f"{what}, {count} inputs", found[NETT], found[name], bar=bar))
            if count == INPUTS[-1] and threads == 1:
                figures.append(_bound(size, count, found[NETT], times, say))
    figures.append(_bytes(ours, weight))
    return Outcome(figures, versions(["torch"]), skipped)


def _timed(way: Callable[[], Any], clock: Callable[[], float]) -> Callable[[], float]:
    """Milliseconds of one call: the mean over as many as take ``LONG`` seconds."""

    def measure() -> float:
        way()
        began, calls = clock(), 0
        while clock() - began < LONG:
            way()
            calls += 1
        return 1000 * (clock() - began) / calls

    return measure


def _check(layer: BipolarLinear, x: torch.Tensor) -> None:
    """What is timed is right: against the same numbers in float64."""
    from nett.weights.bipolar_int import nearest
    from nett.weights.bipolar_linear import input_scale

    step = input_scale(x, BITS, layer.rule)
    expected = (nearest(x, step, BITS) * step[:, None]).double() @ layer.dense().double().T
    if not torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-4):
        raise NettError("the layer is not the product of the numbers that it holds")


def _dynamic(weight: torch.Tensor) -> tuple[Any, dict[str, str]]:
    """The weight as torch's own fast int8 takes it, where this build has it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scale = (weight.abs().amax(1) / 127).double()
            rounded = torch.quantize_per_channel(
                weight, scale, torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8
            )
            packed = torch.ops.quantized.linear_prepack(rounded, None)
            x = torch.randn(4, weight.shape[1])
            expected, found = x @ weight.T, torch.ops.quantized.linear_dynamic(x, packed, True)
        if float((found - expected).norm() / expected.norm()) > 0.05:
            return None, {DYNAMIC: "its results are wrong on this processor"}
        return packed, {}
    except RuntimeError as error:
        return None, {DYNAMIC: str(error).splitlines()[0]}


def _bound(size: int, count: int, ours: Series, times: int, say: Say) -> Figure:
    """Words a CPU second on one thread: what the product comes to, and what the processor counts when it does nothing else."""
    words = size * size // 64 * count * BITS * BITS
    what = f"{words:,} words of 64 bits that differ or not, in the time of {NETT}"
    mine = Series(NETT, "G words/s", [words / ms / 1e6 for ms in ours.runs], ours.load, what)
    near = np.random.default_rng(0).integers(0, 2**64, 2048, np.uint64)  # 16 KB, in the nearest cache
    rounds, kernel, counts = 20_000, _counting(), np.zeros(1, np.uint64)

    def measure() -> float:
        began = time.process_time()
        kernel(near, rounds, counts, 0)
        return rounds * near.size / (time.process_time() - began) / 1e9

    kernel(near, 10, counts, 0)
    name = "counting bits of words in the nearest cache"
    told = in_turn({name: (times, measure)}, "G words/s", say)[name]
    bound = replace(told, command="numba: sum of ctpop(word ^ round), as LLVM vectorises it for this processor")
    note = "above 1 is possible: carry-save adders leave one vector in sixteen to be counted"
    return Figure(f"words a second, {count} inputs", mine, bound, sense="at least", note=note)


def _counting() -> Callable[[Array, int, Array, int], None]:
    import numba
    from numba.core import types
    from numba.extending import intrinsic

    def ones(typing: Any, word: Any) -> Any:
        return types.uint64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])

    set_bits = intrinsic(ones)

    def count(words: Array, rounds: int, into: Array, place: int) -> None:
        total = np.uint64(0)
        for r in range(rounds):
            for i in range(words.size):
                total += set_bits(words[i] ^ np.uint64(r))
        into[place] = total

    found: Callable[[Array, int, Array, int], None] = numba.njit(nogil=True)(count)
    return found


def _bytes(layer: BipolarLinear, weight: torch.Tensor) -> Figure:
    held = Series(NETT, "bytes", [float(layer.planes.nbytes + layer.scale.nbytes)], command="planes and scales")
    return Figure(
        "bytes of the weights", held, Series("float32", "bytes", [float(weight.nbytes)], command="the matrix")
    )
