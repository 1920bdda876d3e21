"""A mixture runs with fewer experts in memory than it has: how often the cache of them is hit, and at what speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import UsageError
from nett.core.registry import Between, method

QUICK = {"experts": 2, "samples": 2}  # of the laws


@method(papers=["P17"], title="Offloaded experts behind a cache", kind="serve", guarantee="exact", grain="block",
        extra="models", command=True)  # fmt: skip
def offload(
    assets: Sequence[str],
    *,
    text: Path | None = None,
    experts: Annotated[int, Between(0)] = 0,
    policy: Literal["lru", "lfu", "segment"] = "lru",
    span: Annotated[int, Between(1, 1_000_000)] = 16,
    step: Annotated[int, Between(1, 1_000_000)] = 1,
    samples: Annotated[int, Between(1, 100_000)] = 8,
    length: Annotated[int, Between(8, 1_000_000)] = 128,
    drop: bool = True,
    compare: bool = False,
    record: Path | None = None,
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> dict[str, Any]:
    """Run a mixture on a text with a cache of experts in memory and the rest on disk, and compare policies on what it asked for.

    Formula: hit rate = requests whose expert is in memory / requests; a step asks each of its layer's experts once
    Args:
        text: windows of it are run token by token, as they are in generation; none where the asset is a trace.
        experts: in memory a layer; 0 for twice as many as a token is given.
        policy: which expert leaves when another is needed: lru (used longest ago), lfu (used least so far), segment (used
            least in the last span steps: routing is local, so these are most likely wanted next).
        span: steps that segment looks back on; and that foresight, with which it is compared, looks ahead.
        step: tokens that go through the model at a time; 1 as in generation, more as when a prompt is read.
        samples: at most so many windows of the text.
        length: tokens of a window.
        drop: have the system forget what was read of the file, so that it keeps no experts in memory either; without it,
            the page cache counts beside.
        compare: run the whole model in memory, too: the largest difference of logits, and the ratio of speeds.
        record: file (.jsonl) to write the trace to, which this command takes in place of a model.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the findings.
        html: file for a page with pictures.
    When to use: a mixture does not fit into memory; or to choose how many of its experts to hold, and by which policy.
    When not: prompts are long and continuations short: a prompt asks for nearly all experts, whatever is held.
    Guarantee: exact. Every expert is computed by the model's own code from the same numbers, and added in the same order:
        the logits are those of the model in memory, bit for bit, by its plain (eager) experts, on one thread and with its
        weights in memory of their own: the processor's products are rounded otherwise by several threads, or where a mapped
        file puts the numbers.
    Cost: a miss reads one expert from disk; memory is the dense parts and experts * layers of them.
    Source: P17 (arXiv:2505.16056) compares LRU and LFU with Belady's optimum and with a cache that knows the next span
        tokens (SCH, here foresight); segment is its idea of local routing without looking ahead, and ours.
    Place: system level, offloading, caching
    """
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders
    from nett.experts.offload_run import page_of, run_offload, words_of

    if len(assets) != 1:
        raise UsageError(
            "takes one model, or one trace", where="experts/offload", hint="nett experts offload MODEL --text FILE --experts 8"
        )  # fmt: skip
    check_folders(json, html, record)
    told = run_offload(
        assets[0], text=text, experts=experts, policy=policy, span=span, step=step, samples=samples, length=length,
        drop=drop, compare=compare, record=record, threads=threads,
    )  # fmt: skip
    return answered(told, words_of, json=json, html=html, page=page_of)
