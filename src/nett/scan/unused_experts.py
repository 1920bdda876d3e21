"""Experts that no token chooses, or hardly any."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.scan.expert_layers import command, finding, mixtures_of, statistics_of
from nett.scan.protocol import Asset, Finding, Findings, Probe, Study, probe

if TYPE_CHECKING:
    from nett.experts.view import FileLayer


@method(title="Unused experts", kind="measure", guarantee="measured", grain="block", command=True)
@probe
def unused_experts(
    assets: Sequence[Asset],
    *,
    text: str = "",
    least: Annotated[float, Between(0, 1)] = 0.01,
    samples: Annotated[int, Between(1, 10_000)] = 32,
    length: Annotated[int, Between(8, 100_000)] = 128,
) -> Probe:
    """Find experts that a router never chooses: from its biases alone, and on a text where one is given.

    Without a text: where a bias of each expert is added to scores between 0 and 1 (DeepSeek-V3's way), an expert is never
    chosen if as many others of its pool as a token chooses have biases larger by more than 1, whatever the token.

    Formula: error = sqrt(sum over an unused expert's tokens of (weight ||output||)^2 / the same over all experts)
    Args:
        text: file that the model is run on, .txt or .jsonl; without it, only the router is read.
        least: share of its even part up to which an expert counts as unused on the text.
        samples: windows of the text.
        length: tokens of a window.
    When to use: before experts are dropped, and on mixtures whose training may have starved some.
    When not: with a text that is unlike what the model will meet: idle there is not idle everywhere.
    Guarantee: exact by the biases alone; measured on this text otherwise, the norms of each expert's outputs by their mean.
    Cost: the routers; with a text a forward pass of it, in which the chosen experts run twice, a block in memory at a time.
    Source: no paper; the error is from the statistics of REAP (Lasby et al. 2025).
    """
    figures: dict[str, Any] = {}
    found: list[Finding] = []
    mine = [(asset, layers) for asset in assets if (layers := mixtures_of(asset, figures))]
    rows = {
        (asset, at): [Study((asset.source(name),), _read) for name in (layer.place.router, *layer.place.beside)]
        for asset, layers in mine
        for at, layer in enumerate(layers)
    }
    yield [study for some in rows.values() for study in some]
    for asset, layers in mine:
        never = {}
        weakest = 1.0
        for at, layer in enumerate(layers):
            router, *beside = (s.answer for s in rows[asset, at])
            never[at] = outvoted(layer, beside)
            norms = np.linalg.norm(router.astype(np.float64), axis=1)
            weakest = min(weakest, float(norms.min() / np.median(norms)) if np.median(norms) else 0.0)
        found += _findings(
            asset, layers, {at: dict.fromkeys(some, 0.0) for at, some in never.items()}, "exact", " --text TEXT"
        )
        told: dict[str, Any] = {"experts": sum(x.count for x in layers), "weakest_row_to_median": weakest}
        told["never"] = sum(map(len, never.values()))
        if text and asset.checkpoint.config() is not None:
            rare, tokens = _on_text(asset, layers, text, least, samples, length)
            rest = {at: {e: v for e, v in some.items() if e not in never[at]} for at, some in rare.items()}
            found += _findings(asset, layers, rest, "measured", f" --text {shlex.quote(text)}", beside=never)
            told |= {"tokens": tokens, "unused_on_text": sum(map(len, rare.values()))}
        figures[asset.path] = told
    return Findings(tuple(found), figures)


def outvoted(layer: FileLayer, beside: Sequence[Array]) -> list[int]:
    """Experts that can never be chosen, by the biases that are added to scores between 0 and 1. beside: what the router has
    beside its matrix, each ``[E]``."""
    biases = [b for b, name in zip(beside, layer.place.beside, strict=True) if name.endswith("correction_bias")]
    if len(biases) != 1:
        return []
    bias = biases[0].astype(np.float64)
    found = []
    for pool in layer.pools:
        inside = np.asarray(pool)
        over = (bias[inside][None, :] > bias[inside][:, None] + 1).sum(1)
        needed = max(2, layer.chosen) if len(layer.pools) > 1 else layer.chosen  # pools are chosen by their two highest
        found += inside[over >= needed].tolist()
    return sorted(found)


def _read(source: Any) -> Array:
    found: Array = source.values(0, source.info.size).reshape(source.shape)
    return found


def _on_text(
    asset: Asset, layers: Sequence[FileLayer], text: str, least: float, samples: int, length: int
) -> tuple[dict[int, dict[int, float]], int]:
    """Of each mixture the experts that hardly any token chooses, with the error of leaving them out."""
    known, tokens = statistics_of(asset, text, samples, length, ["counts", "contribution"])
    found: dict[int, dict[int, float]] = {}
    for at, (layer, one) in enumerate(zip(layers, known, strict=True)):
        counts, mean = one["counts"].double().numpy(), one["contribution"].numpy()
        weight = counts * np.square(mean)
        limit = least * counts.sum() / layer.count
        found[at] = {
            int(e): sqrt(float(weight[e] / weight.sum())) if weight[e] else 0.0 for e in np.flatnonzero(counts <= limit)
        }
    return found, tokens


def _findings(
    asset: Asset,
    layers: Sequence[FileLayer],
    unused: dict[int, dict[int, float]],
    guarantee: Any,
    more: str,
    beside: dict[int, list[int]] | None = None,
) -> list[Finding]:
    gone = {at: len(some) + len((beside or {}).get(at, [])) for at, some in unused.items()}
    gone = {at: n for at, n in gone.items() if n}
    words = command(asset, "frequency", layers, gone, f" --unseen drop{more}")
    return [
        finding(
            "unused_expert", asset, layers[at], e, [], method="experts/frequency", error=error, guarantee=guarantee,
            command=words,
        )
        for at, some in unused.items()
        for e, error in some.items()
    ]  # fmt: skip
