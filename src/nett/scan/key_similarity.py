"""Neighbouring tokens of a text whose keys are alike, so that a cache can hold them as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from nett.core.errors import Refused
from nett.core.registry import Between, method
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe


@method(
    papers=["P19"],
    title="Keys along a text",
    kind="measure",
    guarantee="measured",
    grain="model",
    extra="models",
    command=True,
)
@probe
def key_similarity(
    assets: Sequence[Asset],
    *,
    text: str = "",
    budget: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    alike: Annotated[float, Between(-1, 1)] = 0.75,
    most: Annotated[float, Between(0)] = 0.1,
    samples: Annotated[int, Between(1, 10_000)] = 8,
    context: Annotated[int, Between(2, 100_000)] = 96,
    follow: Annotated[int, Between(2, 100_000)] = 32,
) -> Probe:
    """Run a language model on some text and see how alike the keys of neighbouring tokens are; judge KVMerger there.

    Formula: mean cosine(k_i, k_(i+1)) over tokens, heads and layers;  KL(full || kvmerger) over the tokens that follow
    Args:
        text: file that is read, .txt or .jsonl; without it nothing is run and nothing is found.
        budget: share of the slots that kvmerger may hold.
        alike: cosine from which a token counts as one that could be merged into the one before it.
        most: largest KL of a finding, nats a token.
        samples: windows of the text.
        context: tokens of a window's prompt.
        follow: tokens that follow it one by one.
    When to use: before a cache is made smaller by merging.
    When not: for what is no language model with attention to every token.
    Guarantee: measured on this text.
    Cost: the model in memory; a run of the prompts, and one of what follows.
    Source: P19, section 3.
    """
    from nett.scan.cached_text import run_of, tried

    runs = [
        (a, run_of(a, text, samples, context, follow)) for a in assets if text and a.checkpoint.config() is not None
    ]
    yield []
    found, figures = list[Finding](), dict[str, Any]()
    for asset, run in runs:
        try:
            figures[asset.path] = measured(run.layers, alike)
        except Refused as error:
            figures[asset.path] = {"skipped": str(error)}
            continue
        more, findings = tried("key_similarity", asset, run, {"kvmerger": {"budget": budget}}, most)
        figures[asset.path] |= more
        found += findings
    return Findings(tuple(found), figures)


def measured(layers: Sequence[Sequence[tuple[Any, ...]]], alike: float) -> dict[str, float]:
    """Mean cosines of neighbours, and the share of tokens that are as alike as ``alike`` to the one before."""
    import torch

    sums = {"keys": [0.0, 0, 0], "values": [0.0, 0, 0]}
    for batches in layers:
        for _, keys, values, *_ in batches:
            for name, numbers in (("keys", keys), ("values", values)):
                unit = torch.nn.functional.normalize(numbers.float(), dim=-1)
                cosine = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1).double()
                sums[name][0] += float(cosine.sum())
                sums[name][1] += cosine.numel()
                sums[name][2] += int((cosine >= alike).sum())
    return {
        "cosine of neighbouring keys": sums["keys"][0] / sums["keys"][1],
        "of values": sums["values"][0] / sums["values"][1],
        "keys alike": sums["keys"][2] / sums["keys"][1],
    }
