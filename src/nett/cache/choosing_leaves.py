"""The four ways to choose which leaves of a search are continued, and how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nett.cache.allotting import beams, by_rank, by_reward, by_subtree
from nett.cache.leaf_programme import chosen
from nett.cache.search_tree import Embed, Node
from nett.cache.searching import Select
from nett.cache.step_clusters import clusters_of


def selector(
    by: str,
    *,
    width: int,
    sharing: float,
    coverage: float,
    temperature: float,
    distance: float,
    keep: int,
    embed: Embed | None,
) -> Select:
    """A function of the open leaves and the width that is left; see :func:`nett.cache.ets.ets` for the parameters."""
    most = beams(width, keep)

    def rebase(leaves: Sequence[Node], left: int) -> Sequence[int]:
        return by_reward([leaf.score for leaf in leaves], left, temperature)

    def beam(leaves: Sequence[Node], left: int) -> Sequence[int]:
        return by_rank([leaf.score for leaf in leaves], left, most)

    def dvts(leaves: Sequence[Node], left: int) -> Sequence[int]:
        return by_subtree(leaves, [leaf.score for leaf in leaves], left, width, most)

    def ets(leaves: Sequence[Node], left: int) -> Sequence[int]:
        # In the order of their rewards, so that ties go to the better leaf and not to the order of the call.
        order = np.argsort([-leaf.score for leaf in leaves], kind="stable")
        ranked = [leaves[i] for i in order]
        counts = by_reward([leaf.score for leaf in ranked], left, temperature)
        number: dict[int, int] = {}
        lines = [[number.setdefault(id(n), len(number)) for n in leaf.line()[:-1]] for leaf in ranked]
        groups = [0] * len(ranked)
        if coverage > 0 and len(ranked) > 1:
            groups = clusters_of([leaf.step.text for leaf in ranked], distance, embed)
        kept = chosen([c / left for c in counts], lines, groups, sharing=sharing, coverage=coverage)
        again = iter(by_reward([leaf.score for leaf, k in zip(ranked, kept, strict=True) if k], left, temperature))
        found = [0] * len(leaves)
        for i, k in zip(order, kept, strict=True):
            found[i] = next(again) if k else 0
        return found

    return {"rebase": rebase, "beam": beam, "dvts": dvts, "ets": ets}[by]
