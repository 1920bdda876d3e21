"""Experts that are chosen almost only together with another."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.registry import Between, method
from nett.scan.expert_layers import command, finding, mixtures_of, statistics_of
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe


@method(title="Experts that go together", kind="measure", guarantee="measured", grain="block", extra="models",
        command=True)  # fmt: skip
@probe
def coactive_experts(
    assets: Sequence[Asset],
    *,
    text: str = "",
    share: Annotated[float, Between(0, 1, open_low=True)] = 0.9,
    lift: Annotated[float, Between(1)] = 1.5,
    least: Annotated[int, Between(1)] = 16,
    samples: Annotated[int, Between(1, 10_000)] = 32,
    length: Annotated[int, Between(8, 100_000)] = 128,
) -> Probe:
    """Run a mixture on some text and find experts whose tokens nearly all choose one other expert as well. Only with a text.

    Formula: share = tokens that choose both / tokens that choose the less used one;  lift = share / (share of all tokens that
             choose the other)
    Args:
        text: file that is read, .txt or .jsonl; without it nothing is run and nothing is found.
        share: least share of a finding.
        lift: how many times as often as by chance they must be together: an expert that all tokens choose goes with any.
        least: tokens that must have chosen the less used one.
        samples: windows of the text.
        length: tokens of a window.
    When to use: before experts are merged or dropped: a pair that always acts as one needs no two choices of the router.
    When not: as a measure of what merging costs: two that go together may do opposite things. No error is told, so these are
        no part of what a scan counts as free; the command measures it.
    Guarantee: measured on this text.
    Cost: a forward pass of the text, a block's weights in memory at a time.
    Source: no paper; co-activation as P17 and work on placing experts count it.
    """
    yield []
    figures: dict[str, Any] = {}
    found: list[Finding] = []
    for asset in assets if text else ():
        layers = mixtures_of(asset, figures)
        if not layers:
            continue
        if asset.checkpoint.config() is None:
            figures[asset.path] = {"skipped": "has no config.json, so it is no model that could be run"}
            continue
        known, tokens = statistics_of(asset, text, samples, length, ["counts", "coactive"])
        pairs = {at: together(one["coactive"].numpy(), tokens, share, lift, least) for at, one in enumerate(known)}
        gone = {at: len(some) for at, some in pairs.items() if some}
        words = command(asset, "mc_smoe", layers, gone, f" --text {shlex.quote(text)}")
        for at, some in pairs.items():
            for less, other in some:
                found.append(
                    finding(
                        "coactive_expert", asset, layers[at], less, [other], method="experts/mc_smoe", error=None,
                        guarantee="measured", command=words,
                    )
                )  # fmt: skip
        figures[asset.path] = {"tokens": tokens, "experts": sum(x.count for x in layers), "pairs": sum(gone.values())}
    return Findings(tuple(found), figures)


def together(both: Array, tokens: int, share: float, lift: float, least: int) -> list[tuple[int, int]]:
    """(less used expert, the one that it goes with), each expert once as the less used. both int64 ``[E, E]``: tokens that
    chose both; the diagonal is tokens that chose the expert."""
    counts = both.diagonal().astype(np.float64)
    found: list[tuple[int, int]] = []
    kept: set[int] = set()  # those that others go with stay
    for less in np.argsort(counts, kind="stable").tolist():
        if counts[less] < least or less in kept:
            continue
        shares = both[less] / counts[less]
        over = shares * tokens / np.maximum(counts, 1)
        good = (shares >= share) & (over >= lift) & (np.arange(len(counts)) != less) & (counts >= counts[less])
        good[[one for one, _ in found]] = False
        if good.any():
            other = int(np.argmax(np.where(good, shares, -1.0)))
            found.append((less, other))
            kept.add(other)
    return sorted(found)
