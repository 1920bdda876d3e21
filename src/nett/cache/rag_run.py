"""The work of ``nett cache rag``: passages, prompts, answers, and both ways of computing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nett
from nett.cache.chunk_judging import divergence, following, said
from nett.cache.chunk_serving import Served
from nett.cache.chunk_store import chunk_store
from nett.cache.opening import opened
from nett.cache.retrieving import Index, Passage, encoder_of, read_passages
from nett.core.errors import Refused
from nett.core.progress import report
from nett.core.report.words import size

_SPLIT = "<<the words of a user>>"


def run_rag(
    assets: Sequence[str],
    *,
    question: str,
    questions: Path | None,
    model: str,
    encoder: Path | None,
    system: str,
    chunk: int,
    top: int,
    how: Mapping[str, Any],
    ahead: bool,
    tiers: Mapping[str, Any],
    tokens: int,
    template: bool,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """See :func:`nett.cache.rag`."""
    asked = ([question] if question else []) + _lines(questions)
    net, tokenizer = opened(model, device, threads)
    passages = read_passages(assets, tokenizer, chunk)
    index = Index([p.text for p in passages], None if encoder is None else encoder_of(encoder, device))
    store = chunk_store(net, tokenizer, **tiers)
    head, tail = _frame(tokenizer, system, template)
    stored = _ahead(store, passages, head, top) if ahead else 0.0
    rows = []
    report.begin("answering", len(asked), "questions")
    for one in asked:
        near = index.nearest(one, top)[::-1]
        chunks = [passages[k].ids for k, _ in near]
        rows.append(_answered(store, tokenizer, head, chunks, f"\nQuestion: {one}{tail}", how, tokens))
        rows[-1] |= {"question": one, "passages": [_as_json(passages[k], cosine) for k, cosine in near]}
        report.step(1)
    report.end()
    return {
        "model": model, "encoder": None if encoder is None else str(encoder), "documents": len({p.document for p in passages}),
        "passages": len(passages), "how": dict(how), "ahead_seconds": stored, "questions": rows, "store": store.tiers(),
    }  # fmt: skip


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    if not file.is_file():
        raise Refused("there is no such file", where=file)
    found = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not found:
        raise Refused("holds no question", where=file)
    return found


def _frame(tokenizer: Any, system: str, template: bool) -> tuple[tuple[int, ...], str]:
    """What every prompt begins with, as ids, and what follows a question."""
    if template and getattr(tokenizer, "chat_template", None):
        words = tokenizer.apply_chat_template(
            [{"role": "user", "content": _SPLIT}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = words.partition(_SPLIT)
        return tuple(tokenizer(f"{before}{system}\n", add_special_tokens=False).input_ids), after
    return tuple(tokenizer(f"{system}\n").input_ids), "\nAnswer:"


def _ahead(store: chunk_store, passages: Sequence[Passage], head: Sequence[int], top: int) -> float:
    """Compute all passages, so many at a time. Seconds that it took."""
    report.begin("storing", len(passages), "passages")
    spent = 0.0
    for start in range(0, len(passages), top):
        some = [p.ids for p in passages[start : start + top]]
        ledger = nett.cache.cache_craft(store, head, some, head[-1:], by="prefix").ledger
        spent += ledger["seconds"] + ledger["storing_seconds"]
        report.step(len(some))
    report.end()
    return spent


def _answered(
    store: chunk_store,
    tokenizer: Any,
    head: Sequence[int],
    chunks: Sequence[Sequence[int]],
    question: str,
    how: Mapping[str, Any],
    tokens: int,
) -> dict[str, Any]:
    ids = tokenizer(question, add_special_tokens=False).input_ids
    mine: Served = nett.cache.cache_craft(store, head, chunks, ids, room=tokens, **how)
    full: Served = nett.cache.cache_craft(store, head, chunks, ids, by="full", keep=False)
    length = full.cache.get_seq_length()
    expected = said(store.model, full, tokens)
    full.cache.crop(length - full.cache.get_seq_length())
    gaps = divergence(following(store.model, full, expected), following(store.model, mine, expected))
    answer = said(store.model, mine, tokens)
    return {
        "answer": tokenizer.decode(answer, skip_special_tokens=True).strip(),
        "full_answer": tokenizer.decode(expected, skip_special_tokens=True).strip(),
        "ledger": mine.ledger,
        "full_seconds": full.ledger["seconds"],
        "kl_first": max(0.0, float(gaps[0])),  # below 0 is rounding
        "kl": max(0.0, float(gaps.mean())),
    }


def _as_json(passage: Passage, cosine: float) -> dict[str, Any]:
    return {"document": passage.document, "number": passage.number, "cosine": cosine, "text": passage.text}


def words_of(told: Mapping[str, Any]) -> list[str]:
    """Each question with its answer and what it took; then the sums."""
    by = told["encoder"] or "words"
    lines = [f"{told['passages']} passages of {told['documents']} documents, retrieved by {by}"]
    for row in told["questions"]:
        held = row["ledger"]
        lines += ["", f"Q: {row['question']}", f"A: {row['answer']}"]
        if row["full_answer"] != row["answer"]:
            lines.append(f"   recomputed in full: {row['full_answer']}")
        for passage, part in zip(row["passages"], held["parts"][-len(row["passages"]) :], strict=True):
            moved = f", moved by {part['moved']:+d}" if part["moved"] else ""
            lines.append(
                f"   {part['state']:<9} {part['computed']:>4} of {part['tokens']} tokens computed, CFO {part['cfo']:.2f}{moved}:"
                f" {Path(passage['document']).name} {passage['number']}, cosine {passage['cosine']:.2f}"
            )
        lines.append(
            f"   {held['tokens']} tokens: {held['reused']} as they were, {held['recomputed']} computed again, {held['new']} new,"
            f" {held['question']} of the question; {held['token_layers']:,} of {held['full_token_layers']:,} token-layers"
            f" ({held['share']:.1%})"
        )
        lines.append(
            f"   first token after {held['seconds']:.3f} s, in full after {row['full_seconds']:.3f} s; KL to full recomputation"
            f" {row['kl_first']:.5f} nats there, {row['kl']:.5f} over the answer"
        )
    work = sum(r["ledger"]["token_layers"] for r in told["questions"])
    whole = sum(r["ledger"]["full_token_layers"] for r in told["questions"])
    tiers = told["store"]
    lines += [
        "",
        f"in all {work:,} of {whole:,} token-layers ({work / whole:.1%}); the store holds {tiers['variants']} variants of"
        f" {tiers['chunks']} chunks, {size(tiers['memory'])} in memory, {size(tiers['disk'])} on the disk",
    ]
    return lines
