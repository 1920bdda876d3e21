"""Pruning by use: the experts that the text chooses least often go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.experts.choosing import ranked
from nett.experts.protocol import Kept, Layer, Tensor


@method(papers=[], title="Experts pruned by how often they are chosen", grain="block", identity={"keep": 1.0})
def frequency(
    layers: Sequence[Layer],
    counts: Sequence[Tensor],
    *,
    keep: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    spread: Literal["uniform", "global"] = "uniform",
    unseen: Literal["keep", "drop"] = "keep",
) -> Iterator[Kept]:
    """Keep the experts that most tokens of the text choose.

    Formula: score_j = number of tokens that chose expert j
    Args:
        keep: share of the experts that stays.
        spread: equally many in every layer (loads anywhere), or where the shares of use are highest in the whole model
            (loads with nett.load).
        unseen: whether experts that no token chose stay, since the text tells nothing of them.
    When to use: as the baseline that every other way of choosing must beat.
    When not: reap looks at what an expert adds, too, at little more cost.
    Cost: one pass of the text through the model.
    Place: model level, compression, pruning
    Source: the usual baseline, for example of Lu et al. 2024, arXiv:2402.14800.
    """
    for kept in ranked(layers, counts, counts, keep=keep, spread=spread, unseen=unseen):
        yield Kept(kept)
