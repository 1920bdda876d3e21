"""What a profile says, as plain JSON: of each mixture, of the model, of the texts; and which cache would pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.experts.locality import best_fit, chance_fit, enough, fits, knee, rates
from nett.experts.tally import LRU, Tally, balance, divergence, jackknife
from nett.experts.view import FileLayer

MATRIX = 64  # experts of a mixture whose pairs are all told; of more, the foremost pairs
PAIRS = 64
MULTIPLES = (1.0, 1.5, 2.0, 3.0, 4.0)  # of the experts that a token chooses: sizes of caches that are told
JUDGED = 16  # tokens that the advised cache may look ahead, about: a segment, as P17 speaks of them


def about_layer(layer: FileLayer, tally: Tally, cosines: Array | None, texts: Sequence[str]) -> dict[str, Any]:
    """One mixture."""
    counts, mass = tally.counts.sum(0), tally.mass.sum(0)
    told: dict[str, Any] = {
        "name": layer.name,
        "block": layer.number,
        "experts": layer.count,
        "chosen": layer.chosen,
        "expert_bytes": layer.nbytes // layer.count,
        "counts": counts.tolist(),
        "mass": _rounded(mass),
        "unused": np.flatnonzero(counts == 0).tolist(),
        "balance": _rounded(balance(counts)),
        "coactive": _coactive(tally.together),
        "similar": [] if cosines is None else _pairs(cosines, "cosine"),
        "srp": {str(m): _consistency([tally], m) for m in tally.segments},
        "srp_by_expert": {str(m): _rounded(fits(tally.by_expert[m])) for m in tally.segments},
        "hits": {str(m): _rounded(rates(h.sum((0, 1)))) for m, h in tally.hits.items()},
    }
    if layer.count <= MATRIX:
        told["together"] = tally.together.tolist()
        told["cosines"] = None if cosines is None else [_rounded(row) for row in cosines]
    if len(texts) > 1:
        told["counts_by_text"] = {name: row.tolist() for name, row in zip(texts, tally.counts, strict=True)}
        told["divergence"] = _rounded(_apart(tally.counts))
    return told


def about_model(
    layers: Sequence[FileLayer], tallies: Sequence[Tally], shared: Mapping[int, Array], hits: float
) -> dict[str, Any]:
    """Consistency over all mixtures, caches of some sizes, and the advice."""
    segments = tallies[0].segments
    ahead = max((m for m in segments if m <= JUDGED), default=LRU)
    return {
        "srp": {str(m): _consistency(tallies, m) for m in segments},
        "caches": [_cache(layers, tallies, shared, size) for size in _sizes(layers)],
        "advice": _advice(layers, tallies, ahead, hits),
    }


def about_texts(texts: Sequence[str], tallies: Sequence[Tally]) -> dict[str, Any]:
    """How the texts differ: consistency within each, the mean divergence of each pair, and experts at home in one of them."""
    if len(texts) < 2:
        return {}
    used = [t.counts / np.maximum(1, t.counts.sum(1, keepdims=True)) for t in tallies]
    home = []
    for at, share in enumerate(used):
        total = share.sum(0)
        best = share.argmax(0)
        for e in np.flatnonzero(total > 0):
            part = share[best[e], e] / total[e]
            if part >= 0.8:
                home.append({"layer": at, "expert": int(e), "text": texts[best[e]], "share": round(float(part), 4)})
    return {
        "srp": {
            name: {
                str(m): _rounded(best_fit(sum(t.pooled[m][i].sum(0) for t in tallies)).value)
                for m in tallies[0].segments
            }
            for i, name in enumerate(texts)
        },
        "divergence": [
            {
                "first": texts[a],
                "second": texts[b],
                "bits": _rounded(float(np.mean([divergence(t.counts[a], t.counts[b]) for t in tallies]))),
            }
            for a, b in combinations(range(len(texts)), 2)
        ],
        "at_home": home,
    }


def mean_rates(tallies: Sequence[Tally], ahead: int) -> Array:
    """Hit rates of caches of 1, 2, … experts in every mixture, over all choices; smaller mixtures are whole in larger caches."""
    hits = np.zeros(max(t.experts for t in tallies))
    for t in tallies:
        hits[: t.experts] += t.hits[ahead].sum((0, 1))
    return rates(hits)


def _consistency(tallies: Sequence[Tally], m: int) -> dict[str, Any]:
    """SRP with its interval, the size of its sets, and what would come of uneven use alone."""
    pooled = sum(t.pooled[m].sum(0) for t in tallies)
    assert isinstance(pooled, np.ndarray)
    value, low, high = jackknife(pooled, fits)
    shares = np.concatenate([t.counts.sum(0) / max(1, _tokens(t)) for t in tallies])
    fit = best_fit(pooled.sum(0))
    chance = chance_fit(shares, m) if pooled.any() else 0.0
    return {
        "value": _rounded(value), "low": _rounded(max(0.0, low)), "high": _rounded(min(1.0, high)),
        "size": _rounded(fit.size), "least": fit.least, "chance": _rounded(chance),
    }  # fmt: skip


def _tokens(tally: Tally) -> float:
    """Tokens that went through a mixture: each chose as often as the most that one expert can be chosen with others."""
    counts = int(tally.counts.sum())
    pairs = int(tally.together.sum())  # tokens * k * k, while counts is tokens * k
    return counts * counts / pairs if pairs else 0.0


def _sizes(layers: Sequence[FileLayer]) -> list[int]:
    """Experts a mixture of the caches that are told: multiples of what is chosen, and all."""
    most, chosen = max(x.count for x in layers), max(x.chosen for x in layers)
    return sorted({min(most, ceil(x * chosen)) for x in MULTIPLES} | {most})


def _cache(
    layers: Sequence[FileLayer], tallies: Sequence[Tally], shared: Mapping[int, Array], size: int
) -> dict[str, Any]:
    chosen = max(x.chosen for x in layers)
    told: dict[str, Any] = {
        "experts": size,
        "multiple": round(size / chosen, 2),
        "bytes": sum(min(size, x.count) * (x.nbytes // x.count) for x in layers),
        "hits": {str(m): _rounded(mean_rates(tallies, m)[size - 1]) for m in (LRU, *tallies[0].segments)},
    }
    every = min(size * len(layers), sum(x.count for x in layers))
    told["hits_shared"] = {str(m): _rounded(rates(h)[every - 1]) for m, h in shared.items() if h.any()}
    return told


def _advice(layers: Sequence[FileLayer], tallies: Sequence[Tally], ahead: int, wanted: float) -> dict[str, Any]:
    """Two sizes: where another expert begins to pay less than on average, and where the wanted rate is reached."""
    most, chosen = max(x.count for x in layers), max(x.chosen for x in layers)
    rate, plain = mean_rates(tallies, ahead), mean_rates(tallies, LRU)

    def of(size: int) -> dict[str, Any]:
        grouped = np.zeros((tallies[0].hits[ahead].shape[1], most))
        for t in tallies:
            grouped[:, : t.experts] += t.hits[ahead].sum(0)
        value, low, high = jackknife(grouped, lambda h: h[:, :size].sum(1) / np.maximum(1, h.sum(1)))
        return {
            "experts": size,
            "multiple": round(size / chosen, 2),
            "bytes": sum(min(size, x.count) * (x.nbytes // x.count) for x in layers),
            "hits": _rounded(value),
            "low": _rounded(max(0.0, low)),
            "high": _rounded(min(1.0, high)),
            "hits_lru": _rounded(plain[size - 1]),
        }

    return {
        "ahead": ahead,
        "wanted": wanted,
        "all_bytes": sum(x.nbytes for x in layers),
        "pays": of(knee(rate, chosen)),
        "reaches": of(enough(rate, wanted)),
        "reaches_lru": of(enough(plain, wanted)),
        "twice": of(min(most, 2 * chosen)),
    }


def _coactive(together: Array) -> list[dict[str, Any]]:
    """Pairs that are chosen together more often than by chance, as shares of the less used one's tokens."""
    counts = together.diagonal().astype(np.float64)
    less = np.minimum.outer(counts, counts)
    share = np.divide(together, less, out=np.zeros(together.shape), where=less > 0)
    tokens = counts.sum() ** 2 / max(1.0, float(together.sum()))
    found = _pairs(share, "share")
    for pair in found:
        expected = max(counts[pair["first"]], counts[pair["second"]]) / max(1.0, tokens)
        pair["lift"] = _rounded(pair["share"] / expected) if expected else 0.0
        pair["together"] = int(together[pair["first"], pair["second"]])
    return [p for p in found if p["together"]]


def _pairs(matrix: Array, what: str) -> list[dict[str, Any]]:
    """The foremost pairs of a symmetric matrix."""
    first, second = np.triu_indices(len(matrix), 1)
    value = matrix[first, second]
    order = np.argsort(-value, kind="stable")[:PAIRS]
    return [{"first": int(first[i]), "second": int(second[i]), what: _rounded(value[i])} for i in order]


def _apart(counts: Array) -> float:
    """Mean divergence of the texts, pair by pair, in bits."""
    return float(np.mean([divergence(counts[a], counts[b]) for a, b in combinations(range(len(counts)), 2)]))


def _rounded(value: Any) -> Any:
    """Five digits behind the point: more are noise."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_rounded(v) for v in value]
    return round(float(value), 5)
