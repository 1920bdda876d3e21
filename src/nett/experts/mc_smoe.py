"""MC-SMoE (P23): experts that the router treats alike are aligned and merged into the one that is used most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.experts.protocol import Layer, Merged, Tensor


@method(papers=["P23"], title="MC-SMoE: experts aligned and merged by use", grain="block", identity={"keep": 1.0})
def mc_smoe(
    layers: Sequence[Layer],
    counts: Sequence[Tensor],
    logit_products: Sequence[Tensor],
    *,
    keep: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    spread: Literal["uniform", "global"] = "uniform",
    dominant: Literal["used", "covering"] = "used",
    alike: Literal["router", "weights", "chance"] = "router",
    align: Literal["weights", "no"] = "weights",
    by: Literal["frequency", "equal", "dominant"] = "frequency",
    rank: Annotated[float, Between(0, 1)] = 1.0,
    rows: Annotated[float, Between(0, 1)] = 0.1,
    seed: Annotated[int, Between(0)] = 0,
) -> Iterator[Callable[[], Merged]]:
    """Merge each expert into the most used one that the router treats like it, its neurons put in that one's order.

    Formula: W_g = sum_e f_e P_e W_e / sum_e f_e over the experts of group g; P_e = argmax_P <W_dominant, P W_e>;
             then, with rank below 1, W = L R + S: L R the best of that rank, S the rows of the rest with the largest norms
    Args:
        keep: share of the experts that is left.
        spread: equally many groups in every layer (loads anywhere), or where experts are used most in the whole model, each
            layer's most used counted as one (loads with nett.load).
        dominant: the experts that most tokens chose; or, chosen one by one, those whose groups cover most of the use, so that
            no two that the router treats alike both lead while others are left over (ours).
        alike: which dominant expert another joins: the one whose router logits go with its own over the text; whose
            weights are most like its own after alignment; or any.
        align: whether neurons are put in the order of the dominant expert's before they are averaged; without it, the
            average of two functions that are the same is another one.
        by: what an expert counts in the average: tokens that chose it, one each, or only the dominant.
        rank: rank of the low-rank part of each merged matrix, as a share of that at which it has as many numbers as the
            matrix; 1 leaves the matrices whole.
        rows: share of the rows of what the low-rank part leaves that stay, where rank is below 1.
        seed: of what chance chooses, where it does.
    When to use: mixtures with many experts that do the same, and `--router map`, which keeps the choices exact.
    When not: with `--dominant used` where copies of one expert are used equally: all of them lead, and others must join what
        they are not like. And where answers are generated freely, before reap was tried: dropping is reported to keep more of
        them than merging.
    Cost: one pass of the text; for each expert an assignment problem of its number of neurons, and a singular value
        decomposition of each merged matrix where rank is below 1. Written in parts, a model loads with nett.load alone.
    Place: model level, algorithm, expert merging; model level, compression, low rank
    Source: Li et al. 2023, "Merge, Then Compress" (P23), sections 3.1 to 3.3 and their code for the order of steps: dominant
        experts by use, groups by router logits, alignment by weight matching. Experts that no token chose count as if one
        had. In the paper the sparse part is chosen by trained importances with distillation; here by norms, without training.
    """
    from nett.experts.choosing import global_counts, highest, uniform_counts
    from nett.experts.grouping import cosines, covering, joined_to
    from nett.experts.merging import merged

    seen = [c.clamp(min=1).double() for c in counts]
    numbers = uniform_counts(layers, keep)
    if spread == "global":
        numbers = global_counts(layers, keep, [(c / c.max()).numpy() for c in seen])
    for at, (layer, number) in enumerate(zip(layers, numbers, strict=True)):
        near = cosines(logit_products[at])
        use = seen[at].numpy()
        leaders = highest(layer, use, number) if dominant == "used" else covering(layer, use, near, number)
        groups = joined_to(leaders, near, seed=seed + at if alike == "chance" else None)
        yield partial(
            merged,
            layer,
            leaders,
            groups if alike != "weights" else None,
            seen[at],
            align=align == "weights",
            by=by,
            rank=rank,
            rows=rows,
        )
