"""Experts of one mixture that do nearly the same, whatever the order of their neurons."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from nett.core.delta import relative_error
from nett.core.dtypes import Array
from nett.core.moved import Movement, movement
from nett.core.registry import Between, method
from nett.scan.expert_layers import Matrix, command, finding, matrices, mixtures_of
from nett.scan.protocol import Asset, Finding, Findings, Probe, Study, probe

if TYPE_CHECKING:
    from nett.experts.view import FileLayer

_DIMENSIONS = 32  # of a neuron's sketch
_BLOCK = 1 << 20  # elements read, or distances computed, at once
_ASKED = 64  # neurons that tell whether a pair is worth a full match
_SLACK = 1.5  # on what sketches say, before a pair is left out
_EXACT = 1024  # neurons that are matched by linear assignment; of more, each goes to its nearest


@method(title="Similar experts", kind="measure", guarantee="measured", grain="tensor", command=True)
@probe
def similar_experts(
    assets: Sequence[Asset],
    *,
    similar: Annotated[float, Between(0, 1, open_low=True)] = 0.9,
    seed: Annotated[int, Between(0)] = 0,
) -> Probe:
    """Find experts of a mixture whose weights nearly equal an earlier expert's, its neurons put in the other's order.

    Formula: error = min_P ||W_a - P W_b|| / ||W_b||, over gate, up and down; P a permutation of neurons
    Args:
        similar: least cosine between two experts' weights after alignment.
        seed: of the sketches.
    When to use: on mixtures that were made of a dense model or by doubling experts, and on merges.
    When not: for experts that act alike with different weights: nett experts profile compares outputs on a text.
    Guarantee: measured. The error is the relative L2 distance of all weights in the order that was found: for more than 1024
        neurons, or where sketches mislead, there may be a better one.
    Cost: one reading of the experts into sketches of 32 numbers a neuron, a mixture at a time; pairs that could be near are
        read once more.
    Source: no paper; alignment as weight matching does it, on random projections.
    """
    figures: dict[str, Any] = {}
    found: list[Finding] = []
    yield []
    for asset in assets:
        layers = mixtures_of(asset, figures)
        near: dict[int, list[tuple[int, int, Movement]]] = {}
        closest = 0.0
        for at, layer in enumerate(layers):
            studies = [_sketching(asset, layer, e, seed) for e in range(layer.count)]
            yield studies
            pairs = _candidates([s.answer for s in studies], 2 * (1 - similar))
            orders = [matched(studies[a].answer, studies[b].answer) for a, b in pairs]
            del studies
            checks = [_comparing(asset, layer, a, b, order) for (a, b), order in zip(pairs, orders, strict=True)]
            yield checks
            for (a, b), check in zip(pairs, checks, strict=True):
                moved: Movement = check.answer
                closest = max(closest, moved.cosine)
                if moved.cosine >= similar and not moved.nonfinite:
                    near.setdefault(at, []).append((a, b, moved))
        if layers:
            figures[asset.path] = {
                "experts": sum(layer.count for layer in layers),
                "similar": sum(map(len, near.values())),
                "closest": closest,
            }
        words = command(
            asset, "mc_smoe", layers, {at: len(some) for at, some in near.items()}, " --alike weights --text TEXT"
        )
        for at, some in near.items():
            for a, b, moved in some:
                found.append(
                    finding(
                        "similar_expert", asset, layers[at], b, [a], method="experts/mc_smoe",
                        error=relative_error(moved.distance, moved.b_square), guarantee="measured", command=words,
                    )
                )  # fmt: skip
    return Findings(tuple(found), figures)


# -- sketches ---------------------------------------------------------------------------------------------------


def _sketching(asset: Asset, layer: FileLayer, expert: int, seed: int) -> Study:
    found = matrices(asset, layer, expert)
    return Study(tuple(m.source for m in found), functools.partial(sketch, found, seed))


def sketch(some: Sequence[Matrix], seed: int, *sources: Any) -> Array:
    """float32 ``[neurons, 32]``: a neuron's weights in all three matrices, projected at random; inner products stay about
    what they were. The same for every expert of a shape."""
    made: Array | None = None
    for at, (one, source) in enumerate(zip(some, sources, strict=True)):
        draw = np.random.Generator(np.random.PCG64([seed, at]))
        step = max(1, _BLOCK // one.columns)
        size = one.rows if one.across else one.columns
        project = draw.standard_normal((size, _DIMENSIONS), np.float32) / np.float32(np.sqrt(_DIMENSIONS))
        neurons = one.columns if one.across else one.rows
        made = np.zeros((neurons, _DIMENSIONS), np.float32) if made is None else made
        for first in range(0, one.rows, step):
            last = min(one.rows, first + step)
            block = one.block(first, last, source)
            if one.across:
                made += block.T @ project[first:last]
            else:
                made[first:last] += block @ project
    assert made is not None
    return made


def _candidates(sketches: Sequence[Array], most: float) -> list[tuple[int, int]]:
    """Each expert with the earlier one that it is nearest to, by what the nearest neurons of some of its own say; where that
    could be near. most: squared distance over squared norm."""
    pairs = []
    for later in range(1, len(sketches)):
        own = sketches[later]
        if not np.isfinite(own).all():
            continue
        asked = own[np.linspace(0, len(own) - 1, min(_ASKED, len(own))).round().astype(int)]
        norm = float(np.square(asked, dtype=np.float64).sum())
        away = [
            float(_distances(asked, sketches[e]).min(1).sum()) if np.isfinite(sketches[e]).all() else np.inf
            for e in range(later)
        ]
        best = int(np.argmin(away))
        if away[best] <= _SLACK * most * norm:
            pairs.append((best, later))
    return pairs


def _distances(some: Array, others: Array) -> Array:
    """Squared distances ``[n, m]``."""
    inner = some.astype(np.float64) @ others.T.astype(np.float64)
    norms = np.square(some, dtype=np.float64).sum(1)[:, None] + np.square(others, dtype=np.float64).sum(1)[None]
    return np.asarray(np.maximum(norms - 2 * inner, 0.0))


def matched(first: Array, second: Array) -> Array:
    """int64 ``[neurons]``: for each neuron of ``first`` the one of ``second`` that goes with it, by their sketches."""
    from nett.core.assignment import assigned

    count = len(first)
    if count <= _EXACT:
        return np.asarray(assigned(-_distances(first, second)), np.int64)
    order, away = np.empty(count, np.int64), np.empty(count)
    step = max(1, _BLOCK // count)
    for at in range(0, count, step):
        block = _distances(first[at : at + step], second)
        order[at : at + step] = block.argmin(1)
        away[at : at + step] = block.min(1)
    by_nearness = np.argsort(away, kind="stable")
    _, firsts = np.unique(order[by_nearness], return_index=True)  # of several, the nearest has it
    settled = np.zeros(count, bool)
    settled[by_nearness[firsts]] = True
    left, free = np.flatnonzero(~settled), np.setdiff1d(np.arange(count), order[settled])
    for at in range(0, len(left), _EXACT):  # those that are left, in turn
        mine, theirs = left[at : at + _EXACT], free[at : at + _EXACT]
        order[mine] = theirs[assigned(-_distances(first[mine], second[theirs]))]
    return order


# -- what a pair comes to ---------------------------------------------------------------------------------------


def _comparing(asset: Asset, layer: FileLayer, first: int, second: int, order: Array) -> Study:
    a, b = matrices(asset, layer, first), matrices(asset, layer, second)
    return Study(tuple(m.source for m in (*a, *b)), functools.partial(compared, a, b, order))


def compared(first: Sequence[Matrix], second: Sequence[Matrix], order: Array, *sources: Any) -> Movement:
    """How far the second expert, its neurons in this order, is from the first: sums over all three matrices."""
    total = Movement()
    for at, (a, b) in enumerate(zip(first, second, strict=True)):
        from_a, from_b = sources[at], sources[at + len(first)]
        step = max(1, _BLOCK // a.columns)
        whole = None if b.across else b.block(0, b.rows, from_b)
        for row in range(0, a.rows, step):
            last = min(a.rows, row + step)
            mine = a.block(row, last, from_a)
            theirs = b.block(row, last, from_b)[:, order] if whole is None else whole[order[row:last]]
            total = total + movement(mine.ravel(), np.ascontiguousarray(theirs).ravel())
    return total
