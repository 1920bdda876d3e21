"""Expected attention: what queries to come would look at, if they are as those so far."""

from __future__ import annotations

from typing import Annotated

from nett.cache.choosing import best
from nett.cache.protocol import Kept, Tensor
from nett.core.registry import Between, method


@method(papers=[], title="Expected attention", kind="serve", grain="block", extra="models")
def expected_attention(
    keys: Tensor,
    values: Tensor,
    expected: Tensor,
    covariance: Tensor,
    keep: int,
    *,
    ahead: Annotated[int, Between(1, 100_000)] = 512,
    sinks: Annotated[int, Between(0)] = 4,
    spread: bool = True,
    by_value: bool = True,
    epsilon: Annotated[float, Between(0)] = 0.0,
) -> Kept:
    """Keep the tokens that queries to come are expected to look at, weighed by how long their values are.

    Formula: q ~ N(m, C), rotated as the mean of the next positions;  A_i = softmax_i(m k_i / sqrt(d) + k_i C k_i / (2 d)),
             the mean over the query heads of a group;  score_i = (A_i + epsilon) ||v_i||
    Args:
        ahead: positions over which the rotation is averaged.
        sinks: first tokens that stay, and whose queries do not count.
        spread: count the covariance C, without which queries are taken to be their mean.
        by_value: weigh by the values' lengths.
        epsilon: added to the expected attention before that; larger: values decide more.
    When to use: prompts compressed before the question is known.
    When not: caches that are kept small while generating on models with many query heads: sums of d x d numbers a head are
        held for it (dropped after the prompt with when=prefill).
    Cost: products of the queries with themselves, and of each key with a d x d matrix.
    Source: Devoto et al. 2025, arXiv:2510.00636.
    """
    import torch

    width = keys.shape[-1]
    logits = torch.einsum("hnd,hgd->hgn", keys, expected) / width**0.5
    if spread:
        logits = logits + (torch.einsum("hnd,hgde->hgne", keys, covariance) * keys[:, None]).sum(-1) / (2 * width)
    first = min(sinks, keys.shape[1] - 1)
    scores = logits[:, :, first:].softmax(-1).mean(1)
    if by_value:
        scores = (scores + epsilon) * values[:, first:].norm(dim=-1)
    return best(torch.nn.functional.pad(scores, (first, 0), value=float("inf")), keep)
