"""REAP: router-weighted pruning; the experts go that add least to what their tokens become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.experts.choosing import ranked
from nett.experts.protocol import Kept, Layer, Tensor


@method(papers=[], title="REAP: experts pruned by router weight times output", grain="block", identity={"keep": 1.0})
def reap(
    layers: Sequence[Layer],
    contribution: Sequence[Tensor],
    counts: Sequence[Tensor],
    *,
    keep: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    spread: Literal["uniform", "global"] = "uniform",
    unseen: Literal["keep", "drop"] = "keep",
) -> Iterator[Kept]:
    """Keep the experts that add most to the tokens that choose them.

    Formula: S_j = mean over the tokens that chose j of g_j(x) * ||f_j(x)||_2
    Args:
        keep: share of the experts that stays.
        spread: equally many in every layer (loads anywhere), or where the shares of the scores are highest in the whole
            model (loads with nett.load).
        unseen: whether experts that no token chose stay, since the text tells nothing of them.
    When to use: to halve a mixture in one pass of some text, without training.
    When not: where tasks differ much from the text: an expert that only they need looks idle.
    Cost: one pass of the text through the model, in which chosen experts are run twice.
    Place: model level, compression, pruning
    Source: Lasby et al. 2025, "REAP the Experts", arXiv:2510.13999, equation of the saliency; g_j is the weight that the
        router gives, after it is made to sum to one where the model does so.
    """
    for kept in ranked(layers, contribution, counts, keep=keep, spread=spread, unseen=unseen):
        yield Kept(kept)
