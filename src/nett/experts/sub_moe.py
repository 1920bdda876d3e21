"""Sub-MoE (P37): experts whose outputs go the same way are clustered, and each cluster merged in one common subspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from nett.core.registry import Between, method
from nett.experts.protocol import Layer, Merged, Tensor


@method(
    papers=["P37"],
    title="Sub-MoE: experts clustered by outputs and merged in one subspace",
    grain="block",
    identity={"keep": 1.0},
)
def sub_moe(
    layers: Sequence[Layer],
    counts: Sequence[Tensor],
    output_products: Sequence[Tensor],
    outputs: Sequence[Tensor],
    logit_products: Sequence[Tensor],
    *,
    keep: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    spread: Literal["uniform", "global"] = "uniform",
    adjacent: Annotated[int, Between(0)] = 2,
    alike: Literal["outputs", "means", "router", "weights", "chance"] = "outputs",
    by: Literal["frequency", "equal", "dominant"] = "frequency",
    rank: Annotated[float, Between(0, 1, open_low=True)] = 1.0,
    align: Literal["no", "weights"] = "no",
    seed: Annotated[int, Between(0)] = 0,
) -> Iterator[Callable[[], Merged]]:
    """Cluster experts by the directions of their outputs, and make of each cluster one expert in the subspace that its members share.

    Formula: K-means of E_i(X) / ||E_i(X)||; [W_1 | … | W_n] = U S [V_1 | … | V_n], W = U_k S_k sum_i f_i V_i / sum_i f_i
    Args:
        keep: share of the experts that is left.
        spread: equally many clusters in every layer (loads anywhere), or in each run of neighbouring layers one merge
            after the other where it adds least to the distances within clusters (loads with nett.load).
        adjacent: neighbouring layers that share a budget, where spread is global; 0 for all.
        alike: what is clustered: outputs for every token of the text; mean outputs; router logits; weights as they
            stand; or chance, which draws the members of clusters as large as those of outputs.
        by: what an expert counts in the mean: tokens that chose it, one each, or only the most used of its cluster.
        rank: rank of each new matrix, as a share of the full rank of the cluster's matrices side by side.
        align: whether neurons are first put in the order of the most used expert's of the cluster, which the paper does not.
        seed: of what chance draws.
    When to use: where experts are known to answer alike, with `--router map`, which keeps the choices exact.
    When not: to gain by the decomposition itself. U S V_i is W_i, so at full rank the result is the mean of the weights
        by use, to rounding, and below it that mean projected onto U_k, which cannot give it anything that it had not.
        What can be better than plain averaging is which experts are clustered, how clusters are spread over layers
        (--spread global), and alignment; each can be switched off alone. Try reap first: on a small mixture it kept 3
        to 8 points of accuracy more, and of what merging lost, --align weights gave back 1.5 to 3.3 (claim P37).
    Cost: one pass of the text in which every expert is run on every token; below rank 1 a decomposition for each matrix
        of each cluster. The factors are written multiplied out, so rank alone saves no bytes: the receipt says what
        they would take (numbers_of_whole).
    Source: Sub-MoE (P37), adaptive expert clustering and subspace expert merging; the greedy budget of neighbouring layers as
        REAP's reimplementation orders it. Experts that no token chose count as if one had.
    Place: model level, algorithm, expert merging; model level, compression, low rank
    """
    from nett.experts.subspaces import groups_of, likeness, merged_in_subspace, numbers_of

    seen = [c.clamp(min=1).double() for c in counts]
    known = {"outputs": output_products, "means": [o @ o.T for o in outputs], "router": logit_products}
    near = likeness(layers, known.get("outputs" if alike == "chance" else alike))
    for at, number in enumerate(numbers_of(layers, near, keep, spread, adjacent)):
        leaders, groups, inertia = groups_of(
            layers[at], near[at], number, seen[at].numpy(), seed=seed + at if alike == "chance" else None
        )
        yield partial(
            merged_in_subspace,
            layers[at],
            leaders,
            groups,
            seen[at],
            by=by,
            rank=rank,
            align=align == "weights",
            inertia=inertia,
        )
