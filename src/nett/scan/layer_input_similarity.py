"""Layers whose attention is given nearly what the layer before was given, so that a cache can hold the difference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from nett.core.errors import Refused
from nett.core.registry import Between, method
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe


@method(
    papers=["P65"], title="Inputs of neighbouring layers", kind="measure", guarantee="measured", grain="model", extra="models",
    command=True,
)  # fmt: skip
@probe
def layer_input_similarity(
    assets: Sequence[Asset],
    *,
    text: str = "",
    bits: Annotated[int, Between(2, 8)] = 4,
    most: Annotated[float, Between(0)] = 0.1,
    samples: Annotated[int, Between(1, 10_000)] = 8,
    context: Annotated[int, Between(2, 100_000)] = 96,
    follow: Annotated[int, Between(2, 100_000)] = 32,
) -> Probe:
    """Run a language model on some text and see how much less the inputs X of neighbouring layers' projections differ than
    they vary; judge XQuant and XQuant-CL there.

    Formula: var(X_l - X_(l-1)) / var(X_l), over tokens and channels;  KL(full || policy) over the tokens that follow
    Args:
        text: file that is read, .txt or .jsonl; without it nothing is run and nothing is found.
        bits: of the policies' numbers.
        most: largest KL of a finding, nats a token.
        samples: windows of the text.
        context: tokens of a window's prompt.
        follow: tokens that follow it one by one.
    When to use: before a cache is held as codes of hidden states: below 1/4 a difference saves a bit.
    When not: for what is no language model with attention to every token.
    Guarantee: measured on this text.
    Cost: the model in memory; a run of the prompts, and one of what follows for each policy, which make keys and values again.
    Source: P65, section 3.3.
    """
    from nett.scan.cached_text import run_of, tried

    runs = [
        (a, run_of(a, text, samples, context, follow)) for a in assets if text and a.checkpoint.config() is not None
    ]
    yield []
    found, figures = list[Finding](), dict[str, Any]()
    for asset, run in runs:
        try:
            ratios = measured(run.layers)
        except Refused as error:
            figures[asset.path] = {"skipped": str(error)}
            continue
        figures[asset.path] = {"layers": ratios}
        if ratios:
            figures[asset.path] |= {"mean ratio of variances": sum(ratios) / len(ratios), "largest": max(ratios)}
        ways = {name: {"bits": bits} for name in ("xquant", "xquant_cl")}
        more, findings = tried("layer_input_similarity", asset, run, ways, most)
        figures[asset.path] |= more
        found += findings
    return Findings(tuple(found), figures)


def measured(layers: Sequence[Sequence[tuple[Any, ...]]]) -> list[float]:
    """The ratio of each layer from the second on."""
    ratios = []
    for before, after in pairwise(layers):
        pairs = [(a[0].hidden.double(), b[0].hidden.double()) for a, b in zip(before, after, strict=True)]
        ratios.append(_variance([b - a for a, b in pairs]) / _variance([b for _, b in pairs]))
    return ratios


def _variance(parts: Sequence[Any]) -> float:
    count = sum(p.numel() for p in parts)
    mean = sum(float(p.sum()) for p in parts) / count
    return float(sum(float((p - mean).square().sum()) for p in parts) / count)
