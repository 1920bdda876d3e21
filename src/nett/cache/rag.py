"""Questions answered from documents, with the chunks' keys and values used again: what it saves, and what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from nett.core.errors import UsageError
from nett.core.registry import Between, method

QUICK = {"system": "read:", "question": "what lay?", "chunk": 12, "top": 2, "tokens": 3, "ahead": True}  # of the laws


@method(papers=["P11"], title="Answers from reused chunks", kind="measure", grain="model", extra="models", command=True)
def rag(
    assets: Sequence[str],
    *,
    question: str = "",
    questions: Path | None = None,
    model: Path | None = None,
    encoder: Path | None = None,
    system: str = "Answer the question in one sentence, from these passages.",
    chunk: Annotated[int, Between(4, 100_000)] = 64,
    top: Annotated[int, Between(1, 1000)] = 4,
    by: Literal["cache_craft", "cacheblend", "first", "random", "reuse", "prefix", "full"] = "cache_craft",
    alpha: Annotated[float, Between(0, 1000)] = 1.0,
    share: Annotated[float, Between(0, 1)] = 0.0,
    renew: Annotated[float, Between(0, 1, open_low=True)] = 1.0,
    sink: bool = False,
    ahead: bool = False,
    store: Path | None = None,
    memory: str = "1GB",
    disk: str = "10GB",
    variants: Annotated[int, Between(1, 1000)] = 4,
    tokens: Annotated[int, Between(1, 100_000)] = 32,
    template: bool = True,
    device: str = "cpu",
    threads: Annotated[int, Between(0, 256)] = 0,
    json: Path | None = None,
) -> dict[str, Any]:
    """Retrieve passages of documents for each question, answer from them, and say what was used again and computed.

    Args:
        question: to be answered.
        questions: a file with one question a line, which are answered one after the other from one store.
        model: a folder or file of the language model.
        encoder: a folder of a sentence encoder that retrieves; without it words do.
        system: text that every prompt begins with.
        chunk: tokens of a passage at most.
        top: passages of a prompt, the nearest last.
        by: how stored chunks are used; see nett show cache/cache_craft.
        alpha: factor of the CFO; larger is nearer to full recomputation.
        share: of every chunk in another context that is computed again, whatever its CFO; 0 for the CFO.
        renew: the CFO from which on a chunk is computed wholly.
        sink: the system's text counts among the chunks that a chunk looked at.
        ahead: all passages are computed before the first question, as many at a time as a prompt has, in their documents' order.
        store: folder that keeps chunks for the next time; of one model alone.
        memory: bytes of chunks in memory.
        disk: bytes of chunks in the folder.
        variants: of one chunk at most.
        tokens: of an answer at most.
        template: questions are put as the model's chat template has them, where it has one.
        device: where it is computed: cpu, cuda, mps.
        threads: of computation on the CPU; 0 for all that this process may use.
        json: file for the findings.
    When to use: to see on documents and questions of yours what reuse saves and what it changes in the answers.
    When not: a server's throughput is not what this measures: one prompt runs at a time.
    Cost: each prompt twice, once from the store and once in full, to compare.
    Source: P11, arXiv:2502.15734.
    """
    from nett.cache.rag_run import run_rag, words_of
    from nett.core.report.answer import answered
    from nett.core.staging import check_folders

    where, example = "cache/rag", 'nett cache rag DOCS --question "…" --model MODEL --encoder ENCODER'
    if not assets:
        raise UsageError("name documents: files, or folders of them", where=where, hint=example)
    if model is None:
        raise UsageError("needs a language model", where=where, hint=example)
    if not question and questions is None:
        raise UsageError("needs a question", where=where, hint=example)
    check_folders(json)
    how = {"by": by, "alpha": alpha, "share": share, "renew": renew, "sink": sink}
    tiers = {"folder": store, "memory": memory, "disk": disk, "variants": variants}
    told = run_rag(
        assets, question=question, questions=questions, model=str(model), encoder=encoder, system=system, chunk=chunk,
        top=top, how=how, ahead=ahead, tiers=tiers, tokens=tokens, template=template, device=device, threads=threads,
    )  # fmt: skip
    return answered(told, words_of, json=json)
