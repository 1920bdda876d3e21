"""PreMoe: which experts a task needs, stored; a query finds its task, and only that task's experts are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import UsageError
from nett.core.registry import Between, method


@method(papers=["P66"], title="PreMoe: task patterns of experts", kind="serve", grain="block", extra="models",
        command=True)  # fmt: skip
def premoe(
    assets: Sequence[str],
    *,
    task: str | Sequence[str],
    keep: Annotated[float, Between(0, 1, open_low=True)] = 0.5,
    top: Annotated[int, Between(0)] = 1,
    score: Literal["logit", "probability"] = "logit",
    threshold: Annotated[float, Between(0, 1)] = 0.0,
    samples: Annotated[int, Between(1, 100_000)] = 128,
    length: Annotated[int, Between(8, 1_000_000)] = 512,
    out: Path | None = None,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Score a mixture's experts on text of several tasks and store for each task which it wants most.

    Formula: TCESS(e | task) = mean over its tokens of z_e [e in the K_a highest logits z, softmax of those >= threshold]
    Args:
        task: NAME=FILE, the name of a task and text of it (.txt, or .jsonl with an entry text); once for each task.
        keep: share of the experts of each layer that are loaded for a task.
        top: K_a, how many of the highest logits of a token count; 0 for as many experts as it is given.
        score: what a token adds: its logit (the paper's; a selected expert with a negative logit ranks below those that
            are never selected), or its probability among all experts.
        threshold: least share of an expert among the K_a, a softmax over their logits, for its token to count.
        samples: at most so many windows of each text, evenly spread over it.
        length: tokens of a window.
        out: folder to write the patterns to, with a receipt; without it they are only told.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        overwrite: replace the folder out if it exists.
        dry_run: say what would be done, and do nothing.
    Example:
        nett.experts.premoe(["MODEL"], task=["code=code.txt", "prose=prose.txt"], out=Path("patterns"))
        model = nett.load("patterns/code", as_model=True)  # reads the experts of code alone
        served = nett.experts.loader("patterns", query="def area(radius):")  # of the stored task nearest to a query
        served.switch(task="prose")  # reads what prose has and code has not
    When to use: one mixture serves tasks that are apart, and memory holds a part of it at a time.
    When not: queries change their task all the time, or are like no task that was stored: nett experts offload keeps all
        experts within reach.
    Cost: one pass of all texts through the model; to judge each task, one more of its held-out windows, twice.
    Source: P66 (arXiv:2505.17639): TCESS and the stored patterns are those of the authors' code (K_a = 1, raw logits, no
        threshold); that selection counts logits, without the biases and pools that some routers add, is theirs too.
    Place: model level, compression, pruning; system level, offloading, prefetching
    """
    from nett.experts.making_patterns import make_patterns

    if len(assets) != 1:
        hint = "nett experts premoe MODEL --task NAME=FILE --task NAME=FILE --out DIR"
        raise UsageError(f"takes one model, {len(assets)} given", where="experts/premoe", hint=hint)
    return make_patterns(
        assets[0], task=[task] if isinstance(task, str) else task, keep=keep, top=top, score=score, threshold=threshold,
        samples=samples, length=length, out=out, device=device, threads=threads, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
