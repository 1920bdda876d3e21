"""How many experts stay, and which: counts from a share, ranks from scores. Ties go to the lower number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.experts.protocol import Layer

Spread = Literal["uniform", "global"]
Unseen = Literal["keep", "drop"]


def uniform_counts(layers: Sequence[Layer], keep: float) -> list[int]:
    """The nearest whole number of experts to the share ``keep`` of each layer, equally many in each of its pools. Refused
    where fewer stay than a token chooses."""
    found = []
    for layer in layers:
        step = len(layer.pools)
        count = step * int(np.floor(keep * layer.count / step + 0.5))
        if count < layer.least:
            what = f"a token chooses {layer.chosen}" + (f" from {step} pools" if step > 1 else "")
            raise Refused(
                f"keep = {keep:g} leaves {count} of {layer.count} experts in {layer.name}, but {what}",
                hint=f"--keep {layer.least / layer.count:.4g} or more.",
            )
        found.append(min(count, layer.count))
    return found


def global_counts(layers: Sequence[Layer], keep: float, scores: Sequence[Any]) -> list[int]:
    """As many experts as :func:`uniform_counts` in all, spread over layers so that the highest scores of the model stay;
    no layer has fewer than its least. The scores are compared across layers, so they must be of one scale."""
    if any(len(layer.pools) > 1 for layer in layers):
        raise Refused(
            "its routers choose among pools first, so every layer keeps equally many", hint="--spread uniform"
        )
    budget, counts = sum(uniform_counts(layers, keep)), [layer.least for layer in layers]
    rest = []
    for at, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        order = np.argsort(-np.asarray(score, np.float64), kind="stable")
        rest += [(-float(score[e]), at, int(e)) for e in order[layer.least :]]
    for _, at, _ in sorted(rest)[: max(0, budget - sum(counts))]:
        counts[at] += 1
    return counts


def highest(layer: Layer, scores: Any, count: int, first: Sequence[int] = ()) -> list[int]:
    """The ``count`` experts with the highest scores, in ascending order of their numbers; equally many of each pool.
    ``first``: experts that stay before any other."""
    score = np.asarray(scores, np.float64).copy()
    ahead = np.zeros(layer.count, bool)
    ahead[list(first)] = True
    order: Array = np.lexsort((np.arange(layer.count), -score, ~ahead))
    each, kept = count // len(layer.pools), []
    for pool in layer.pools:
        inside = set(pool)
        kept += [int(e) for e in order if int(e) in inside][:each]
    return sorted(kept)


def ranked(
    layers: Sequence[Layer],
    scores: Sequence[Any],
    counts: Sequence[Any],
    *,
    keep: float,
    spread: Spread = "uniform",
    unseen: Unseen = "keep",
) -> list[list[int]]:
    """For each layer the experts that stay: those with the highest scores, and with ``unseen`` keep before them those that
    no token chose, of which the text tells nothing.

    scores, counts: [E] for each layer. Refused where the unseen alone fill a layer.
    """
    values = [np.asarray(s, np.float64) for s in scores]
    share = [v / (v.sum() or 1.0) for v in values]
    numbers = uniform_counts(layers, keep) if spread == "uniform" else global_counts(layers, keep, share)
    found = []
    for layer, value, seen, number in zip(layers, values, counts, numbers, strict=True):
        quiet = [int(e) for e in np.flatnonzero(np.asarray(seen) == 0)] if unseen == "keep" else []
        if quiet and number < layer.count and number - len(quiet) < layer.least:
            raise Refused(
                f"{len(quiet)} of {layer.count} experts of {layer.name} were chosen by no token of the text, so that nothing "
                f"is known of them; keeping them leaves {max(0, number - len(quiet))} of the others",
                hint="More text (--samples), a larger --keep, or --unseen drop.",
            )
        found.append(highest(layer, value, number, quiet))
    return found
