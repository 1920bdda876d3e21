"""How few of a text's tokens attention looks at, so that a cache can do without the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from nett.core.errors import Refused
from nett.core.registry import Between, method
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe

_POLICIES = ("window", "knorm", "h2o", "snapkv", "expected_attention", "ems")


@method(
    papers=["P22"], title="Attention along a text", kind="measure", guarantee="measured", grain="model", extra="models",
    command=True,
)  # fmt: skip
@probe
def attention_sparsity(
    assets: Sequence[Asset],
    *,
    text: str = "",
    budget: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    share: Annotated[float, Between(0, 1)] = 0.9,
    most: Annotated[float, Between(0)] = 0.1,
    samples: Annotated[int, Between(1, 10_000)] = 8,
    context: Annotated[int, Between(2, 100_000)] = 96,
    follow: Annotated[int, Between(2, 100_000)] = 32,
) -> Probe:
    """Run a language model on some text and see how few tokens hold most of the attention of a prompt's last queries; judge
    the policies that drop tokens there.

    Formula: smallest share of a prompt's tokens with sum of attention >= share, of each head, the last 32 queries;
             KL(full || policy) over the tokens that follow
    Args:
        text: file that is read, .txt or .jsonl; without it nothing is run and nothing is found.
        budget: share of the slots that policies may hold.
        share: of the attention that is to be held.
        most: largest KL of a finding, nats a token.
        samples: windows of the text.
        context: tokens of a window's prompt.
        follow: tokens that follow it one by one.
    When to use: before a cache is made smaller by dropping tokens.
    When not: for what is no language model with attention to every token.
    Guarantee: measured on this text.
    Cost: the model in memory; a run of the prompts, and one of what follows for each policy.
    Source: P22, section 3; Zhang et al. 2023, arXiv:2306.14048.
    """
    from nett.scan.cached_text import run_of, tried

    runs = [
        (a, run_of(a, text, samples, context, follow)) for a in assets if text and a.checkpoint.config() is not None
    ]
    yield []
    found, figures = list[Finding](), dict[str, Any]()
    for asset, run in runs:
        try:
            shares = measured(run.layers, share)
        except Refused as error:
            figures[asset.path] = {"skipped": str(error)}
            continue
        flat = sorted(s for row in shares for s in row)
        figures[asset.path] = {
            "heads": shares,
            "tokens needed, mean": sum(flat) / len(flat),
            "sparsest head": flat[0],
            "densest": flat[-1],
        }
        more, findings = tried("attention_sparsity", asset, run, {p: {"budget": budget} for p in _POLICIES}, most)
        figures[asset.path] |= more
        found += findings
    return Findings(tuple(found), figures)


def measured(layers: Sequence[Sequence[tuple[Any, ...]]], share: float, last: int = 32) -> list[list[float]]:
    """Layer by layer, key head by key head: share of the prompt's tokens, the mean over prompts."""
    import torch

    from nett.cache.attention import weights

    found = []
    for batches in layers:
        rows = []
        for _, keys, _, query, _, scaling in batches:
            count, asked = keys.shape[2], query[:, :, -last:]
            blind = torch.ones(asked.shape[2], count, dtype=torch.bool).tril(count - asked.shape[2]).logical_not()
            bias = torch.zeros(1, 1, *blind.shape).masked_fill_(blind, torch.finfo(torch.float32).min)
            mass = weights(asked, keys, bias, scaling).mean(2).sort(-1, descending=True).values
            needed = (mass.cumsum(-1) < share * mass.sum(-1, keepdim=True)).sum(-1).clamp(max=count - 1) + 1
            rows.append(needed.double() / count)
        found.append([float(s) for s in torch.cat(rows).mean(0)])
    return found
