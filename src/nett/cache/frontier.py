"""Quality against bytes held for all policies on one model and one text: the picture to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from nett.core.errors import UsageError
from nett.core.registry import Between, method

QUICK = {
    "policies": "window,kivi",
    "budgets": "0.5",
    "bits": "4",
    "context": 24,
    "follow": 6,
    "samples": 2,
}  # of the laws


@method(papers=[], title="Frontier of policies", kind="measure", grain="model", extra="models", command=True)
def frontier(
    assets: Sequence[str],
    *,
    text: Path | None = None,
    policies: str = "auto",
    budgets: str = "0.5,0.35,0.2",
    bits: str = "2,4,8",
    samples: Annotated[int, Between(1, 100_000)] = 32,
    context: Annotated[int, Between(1, 1_000_000)] = 128,
    follow: Annotated[int, Between(2, 100_000)] = 64,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Judge every policy at several budgets by what it changes in a model's predictions on a text.

    Formula: mean over texts and tokens of KL(p_full || p_policy), against the bytes that are held at the end
    Args:
        text: windows of it are the prompts, and what follows them is given token by token.
        policies: their names, separated by commas; auto for all.
        budgets: for policies that drop or merge tokens, separated by commas: shares, tokens (64tok) or bytes.
        bits: for policies that hold codes, separated by commas.
        samples: windows.
        context: tokens of a window's prompt.
        follow: tokens that follow it.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the points.
        html: file for a page with the picture.
    When to use: to choose a policy and a budget for a model on text of yours.
    When not: what matters is a task that no text of yours is like.
    Cost: each prompt is run once; its continuation once for every policy and budget.
    Source: ours.
    """
    from nett.cache.frontier_run import page_of, run_frontier, words_of
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders

    if len(assets) != 1:
        raise UsageError("name one model", where="cache/frontier", hint="nett cache frontier MODEL --text FILE")
    check_folders(json, html)
    told = run_frontier(
        assets[0], text=text, policies=policies, budgets=budgets, bits=bits, samples=samples, context=context,
        follow=follow, device=device, threads=threads,
    )  # fmt: skip
    return answered(told, words_of, json=json, html=html, page=page_of)
