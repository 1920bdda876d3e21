"""PCB-Merging (P74): parameters compete within and between the tasks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit
from nett.core.passes import Total
from nett.core.ranks import Extremes, Ranks
from nett.core.registry import Between, Tunable, method
from nett.merge.protocol import for_each

_CLAMPED = 1e-4  # share of the smallest and of the largest entries that the authors' code clamps
_COARSE, _FINE = 2.0**20, 2.0**60  # numbers up to 1 are added up as multiples of both, so in any order
_HALF = 2**26


@method(papers=["P74"], title="PCB-Merging", needs=["base"], identity={"variant": "paper", "ratio": 1.0, "scale": 1.0})
def pcb(
    base: Array,
    tuned: Sequence[Array],
    *,
    variant: Literal["paper", "repo"] = "paper",
    ratio: Annotated[float, Between(0, 1, open_low=True)] = 0.1,
    scale: Annotated[
        float | Sequence[float], Tunable((0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0))
    ] = 1.0,
) -> Generator[Sequence[Any], list[Any], Array]:
    """Score each entry of a task vector against its own task and the others, keep the best, and average by score.

    Formula: b_i = softmax(N norm(tau_i^2)) * sum_j softmax(norm(tau_i tau_j));  merged = base +
             sum_i [b_i in its top ratio] b_i scale_i tau_i / sum_i [b_i in its top ratio] b_i
    Args:
        variant: the paper's scores, or those of the authors' code: task vectors clamped at their outermost 0.01 %,
            b_i = exp(N norm(|tau_i|)^2) * tanh(tau_i * sum_j tau_j), rescaled to 0..1 above the threshold.
        ratio: share of each task vector's entries that is kept.
        scale: factor on the task vectors (lambda); one value, or one for each model, or auto with --eval.
    When to use: several fine-tunes of one base that pull in different directions, merged without training.
    When not: two close fine-tunes, where averaging loses nothing; with scale untuned.
    Cost: reads every model four to six times; time grows with the square of the number of models (variant paper).
    Source: P74, section 3, equations 1 to 5; norm is (x - min) / (max - min) over the whole model.
    """
    scales = for_each(scale, len(tuned), "scale")
    deltas = [model - base for model in tuned]
    if base.size == 0:
        return base.copy()
    if variant == "paper":
        scores = yield from _scores_of_the_paper(deltas)
        cuts = yield [Ranks(s, lambda size: [int(size * (1 - ratio))], "model") for s in scores]
        parts = [(d, s * (s >= cut[0])) for d, s, cut in zip(deltas, scores, cuts, strict=True)]
    else:
        parts = yield from _parts_of_the_code(deltas, ratio)
    merged = _averaged(parts, scales)
    merged += base
    return merged.astype(base.dtype)


def _averaged(parts: Sequence[tuple[Array, Array]], scales: Sequence[float]) -> Array:
    """Task vectors times their scales, averaged by their entries' shares, in float64; 0 where no task has a share."""
    if len(parts) == 1:  # without rounding
        (delta, share), (one,) = parts[0], scales
        return np.asarray(delta.astype(np.float64) * one * (share > 0))
    total, divisor = np.zeros(parts[0][0].shape, np.float64), np.zeros(parts[0][0].shape, np.float64)
    for (delta, share), one in zip(parts, scales, strict=True):
        total += share.astype(np.float64) * delta * one
        divisor += share
    return np.divide(total, np.maximum(divisor, 1e-12), out=total)


def _scores_of_the_paper(deltas: Sequence[Array]) -> Generator[Sequence[Any], list[Any], list[Array]]:
    """Intra-balancing times inter-balancing, with each softmax times the number of entries it goes over."""
    count = len(deltas)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    products = {(i, j): deltas[i] * deltas[j] for i, j in pairs}
    ends = yield [Extremes(products[pair], "model") for pair in pairs]
    ranges = dict(zip(pairs, ends, strict=True))
    powers = {(i, i, count): _exponentials(products[i, i], ranges[i, i], float(count)) for i in range(count)}
    powers |= {(i, j, 1): _exponentials(products[i, j], ranges[i, j], 1.0) for i, j in pairs}
    sums = yield [Total(_parts(p), scope="model") for p in powers.values()]
    means = {key: _mean(said) for key, said in zip(powers, sums, strict=True)}
    scores = []
    for i in range(count):
        score = np.zeros(deltas[i].shape, np.float64)
        for j in range(count):
            key = min(i, j), max(i, j), 1
            score += powers[key] / means[key]
        score *= powers[i, i, count] / means[i, i, count]
        scores.append(score.astype(deltas[i].dtype))
    return scores


def _parts_of_the_code(
    deltas: Sequence[Array], ratio: float
) -> Generator[Sequence[Any], list[Any], list[tuple[Array, Array]]]:
    """Clamped task vectors, and the share of each of their entries."""
    ends = yield [
        Ranks(np.abs(d), lambda size: [int(size * _CLAMPED), int(size * (1 - _CLAMPED)) - 1], "model") for d in deltas
    ]
    total = np.asarray(np.sum(deltas, axis=0, dtype=np.float64))
    scores = [_competing(d, total, low, high, float(len(deltas))) for d, (low, high) in zip(deltas, ends, strict=True)]
    cuts = yield [Ranks(s, lambda size: [int(size * (1 - ratio)), size - 1], "model") for s in scores]
    parts = []
    for delta, score, (low, high), (least, most) in zip(deltas, scores, ends, cuts, strict=True):
        clamped = np.copysign(np.clip(np.abs(delta), low, high), delta) * (delta != 0)
        width = most - least
        # All scores equal: each entry counts alike, where the authors' code divides by zero.
        share = np.ones_like(score) if width == 0 else (np.maximum(score, score.dtype.type(least)) - least) / width
        parts.append((clamped, share))
    return parts


@jit
def _exponentials(values: Array, ends: tuple[float, float], factor: float) -> Array:
    """exp(factor * (norm(values) - 1)) in float64: a softmax without its divisor, at most 1."""
    found = np.empty(values.size, np.float64)
    low, width = ends[0], ends[1] - ends[0]
    for i in range(values.size):
        place = (np.float64(values[i]) - low) / width if width > 0 else 1.0
        found[i] = np.exp(factor * (place - 1.0))
    return found


@jit
def _competing(delta: Array, total: Array, low: float, high: float, count: float) -> Array:
    found = np.empty_like(delta)
    width = high - low
    for i in range(delta.size):
        size = min(max(abs(np.float64(delta[i])), low), high)
        place = (size - low) / width if width > 0 else 0.0
        found[i] = np.exp(count * place * place) * np.tanh(np.float64(delta[i]) * total[i])
    return found


@jit
def _multiples(values: Array, coarse: float, fine: float) -> tuple[int, int]:
    whole, rest = np.int64(0), np.int64(0)
    for i in range(values.size):
        near = np.rint(values[i] * coarse)
        whole += np.int64(near)
        rest += np.int64(np.rint((values[i] - near / coarse) * fine))
    return int(whole), int(rest)


def _parts(powers: Array) -> dict[str, float]:
    """A sum as numbers whose own sums over all chunks are exact, and how many there are."""
    whole = rest = 0
    for at in range(0, powers.size, 2**20):  # short enough for 64 bits
        more = _multiples(powers[at : at + 2**20], _COARSE, _FINE)
        whole, rest = whole + more[0], rest + more[1]
    high, low = divmod(rest, _HALF)
    return {"whole": float(whole), "high": float(high), "low": float(low), "size": float(powers.size)}


def _mean(said: dict[str, float]) -> float:
    return (said["whole"] / _COARSE + (said["high"] * _HALF + said["low"]) / _FINE) / said["size"]
