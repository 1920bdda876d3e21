"""Tree search that keeps the branches which share their prefixes: the cache holds fewer nodes for the same answers (ETS)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nett.core.registry import Between, method


@method(papers=["P12"], title="Efficient tree search (ETS)", kind="make", grain="model", extra="store")
def ets(
    prompt: Any,
    generate: Any,
    reward: Any,
    embed: Any = None,
    *,
    width: Annotated[int, Between(1, 100_000)] = 16,
    by: Literal["ets", "rebase", "beam", "dvts"] = "ets",
    sharing: Annotated[float, Between(0, 1000)] = 1.0,
    coverage: Annotated[float, Between(0, 1000)] = 1.5,
    temperature: Annotated[float, Between(0, open_low=True)] = 0.2,
    distance: Annotated[float, Between(0, 2)] = 0.05,
    keep: Annotated[int, Between(0)] = 0,
    depth: Annotated[int, Between(1, 100_000)] = 25,
    score: Literal["last", "mean", "prod", "min"] = "last",
    pick: Literal["majority", "best"] = "majority",
    seed: Annotated[int, Between(0)] = 0,
) -> Any:
    """Search a tree of reasoning steps, and at every step keep the leaves that are worth the nodes that only they need.

    Formula: max sum_i share_i x_i - sharing * (nodes kept / all nodes) + coverage * (clusters covered / all clusters), x_i in {0, 1},
        a kept leaf keeps its ancestors; share_i = n_i / sum n, n_i = ceil(width left * e_i / sum of the e that are left),
        e_i = exp(reward_i / temperature), best first; the leaves that stay are allotted the width by the same rule
    Args:
        width: continuations at each step; a branch that is done takes one away.
        by: how leaves are chosen: ets, or one of its rivals: rebase (the same shares, nothing dropped), beam (the best share the
            width evenly), dvts (the best of each subtree do).
        sharing: price of the nodes that are held (lambda_c); 0 drops nothing.
        coverage: worth of the clusters of steps that are covered (lambda_s); 0 looks at no text.
        temperature: of the shares: the smaller, the more goes to the best.
        distance: cosine distance up to which steps are of one cluster (average linkage).
        keep: beams, or subtrees of dvts; 0 for the root of the width.
        depth: steps after which a branch that is not done is given up.
        score: of a branch that is done: the reward of its last step, or the mean, product or least of all its steps.
        pick: the answer with the largest sum of scores, or that of the best branch.
        seed: a node's continuations depend on it and on the node's place.
    Returns: a Found: ``answer``, ``answers`` with their weights and leaves, ``ledger`` with ``kv_tokens`` (tokens of the leaves
        and of each of their ancestors once, summed over the steps), ``kv_mean``, ``kv_peak``, ``generated``, ``calls``.
    Example:
        generate = nett.cache.model_steps(model, tokenizer, stop="\\n")  # or nett.cache.endpoint_steps(URL, model=NAME)
        found = nett.cache.ets(question, generate, reward, embed, width=16)
        # generate(node, count, rng) -> texts or nett.cache.search_tree.Step; reward(nodes) -> numbers; embed(texts) -> vectors
        print(found.answer, found.ledger["kv_tokens"])
    When to use: many sampled solutions with a reward for each step, where the memory or the traffic of the KV cache is the limit.
    When not: a width of a few branches, or steps so different that all clusters have one leaf: then all of them are kept.
    Cost: an integer programme and a clustering of at most ``width`` leaves a step; one call of ``embed`` a step.
    Guarantee: the ledger counts what a cache with shared prefixes must hold; accuracy is whatever the reward makes of it.
    Source: P12, arXiv:2502.13575; its integer programme, with the constants of the authors' code for a width of 16. Shares: Wu et al. 2024, arXiv:2408.00724.
    """
    from nett.cache.choosing_leaves import selector
    from nett.cache.searching import Found, answers_of, search
    from nett.core.errors import UsageError

    for name, given in {"generate": generate, "reward": reward, "embed": embed}.items():
        if not callable(given) and not (name == "embed" and given is None):
            raise UsageError(f"{name} is {type(given).__name__}, not a callable", where="cache/ets")
    select = selector(
        by, width=width, sharing=sharing, coverage=coverage, temperature=temperature, distance=distance, keep=keep,
        embed=embed,
    )  # fmt: skip
    leaves, ledger = search(prompt, generate, reward, select, width=width, depth=depth, seed=seed)
    answers = answers_of(leaves, score=score, pick=pick)
    return Found(answers[0].answer if answers else None, answers, ledger, tuple(leaves))
