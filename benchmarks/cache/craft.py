"""Chunk caches on a Zipf workload: time to the first token against prefix caching, work and KL against full recomputation.

SmolLM2-135M in float32 on Python's language reference: 100 chunks of 32 tokens, 500 questions that draw four of them by
Zipf's law in any order (claims/chunk_beds.py). Every store begins empty and has 1 GB. Alpha is the largest of a
sweep at which, by the plans of other questions with all chunks stored, 18 % of the token-layers are computed. Every tenth question is answered by
the rivals too, from the same store; KL is over the 16 tokens that follow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measure import spend
from claims.chunk_beds import Corpus, affordable, at_equal_work, compared, fill
from demo.model import find_model
from demo.texts import language_reference

import nett
from nett.cache.chunk_judging import following
from nett.cache.chunk_store import chunk_store
from nett.cache.opening import opened
from nett.core.bench import Figure, Outcome, Series, versions

TITLE = "chunk caches: time to the first token, work and KL on 500 questions whose chunks follow Zipf's law"
Say = Callable[[str], None]
OURS, PREFIX, FULL = "cache_craft", "prefix caching", "full recomputation"
BLEND, WORK = "CacheBlend, as many tokens", "CacheBlend, as many token-layers"
HEAD, CHANCE, REUSE, NONE = "first tokens", "tokens by chance", "full reuse", "no chunks"
SYSTEM = "Answer from the passages.\n"
BUDGET = 0.18  # of the plans, in which all chunks are stored; new ones come to it
MEMORY = "1GB"  # of each store; prefixes leave it by when they were used last


def run(work: Path, say: Say, pico: bool) -> Outcome:
    model, texts, system = _pico_bed() if pico else _bed(work, say)
    count, every, chunk, asked, gold = (40, 10, 24, 8, 8) if pico else (500, 10, 32, 8, 16)
    corpus = Corpus.of(texts, system, chunk=chunk, question=asked, gold=gold, seed=0)
    others = list(corpus.queries(10 if pico else 40, 1000))
    tuned = chunk_store(model)
    fill(tuned, corpus, others)
    alpha = affordable(tuned, corpus, others, BUDGET)
    say(f"alpha {alpha}")
    store, prefixes = chunk_store(model, memory=MEMORY), chunk_store(model, evict="lru", variants=1000, memory=MEMORY)
    rows: dict[str, list[float]] = {}
    kls: dict[str, list[float]] = {}
    load = []

    def note(into: dict[str, list[float]], name: str, value: float) -> None:
        into.setdefault(name, []).append(value)

    for number, query in enumerate(corpus.queries(count, 0)):

        def serve(where: chunk_store, chunks: Any = query.chunks, asked: Any = query.question, **how: Any) -> Any:
            return nett.cache.cache_craft(where, corpus.system, chunks, asked, **how)

        if number % every == every - 1:
            _judge(model, store, serve, query.gold, alpha, partial(note, kls), partial(note, rows))
        ways: dict[str, tuple[chunk_store, dict[str, Any]]] = {
            OURS: (store, {"alpha": alpha}),
            PREFIX: (prefixes, {"by": "prefix"}),
        }
        for name, (where, how) in list(ways.items())[:: 1 if number % 2 else -1]:
            ledger = serve(where, **how).ledger
            note(rows, f"{name}, first token", ledger["seconds"])
            note(rows, f"{name}, storing", ledger["seconds"] + ledger["storing_seconds"])
            note(rows, f"{name}, work", ledger["token_layers"])
            if name == OURS:
                note(rows, f"{FULL}, work", ledger["full_token_layers"])
        if number % 25 == 24:
            load.append(os.getloadavg()[0])
            mine, theirs = (np.mean(rows[f"{n}, first token"][-25:]) for n in (OURS, PREFIX))
            say(f"question {number + 1}: first token after {mine:.3f} s, with prefix caching {theirs:.3f} s")
    figures = _figures(_Told(rows, load, alpha), kls, {OURS: store, PREFIX: prefixes})
    return Outcome(figures, versions(["torch", "transformers"]))


def _judge(
    model: Any,
    store: chunk_store,
    serve: Any,
    gold: Any,
    alpha: float,
    kl: Callable[..., None],
    note: Callable[..., None],
) -> None:
    full = serve(store, by="full", keep=False)
    note(f"{FULL}, first token", full.ledger["seconds"])
    expected = following(model, full, gold)
    ours = serve(store, alpha=alpha, keep=False)
    allowed = at_equal_work(store, ours.ledger)
    blend = {"by": "cacheblend", "share": allowed} if allowed else {"by": "reuse"}
    served = {
        OURS: ours,
        BLEND: serve(store, by="cacheblend", alpha=alpha, keep=False),
        WORK: serve(store, **blend, keep=False),
        HEAD: serve(store, by="first", alpha=alpha, keep=False),
        CHANCE: serve(store, by="random", alpha=alpha, keep=False),
        REUSE: serve(store, by="reuse", keep=False),
        NONE: serve(store, chunks=[], by="full", keep=False),
    }
    for name, one in served.items():
        kl(name, compared(model, expected, one, gold).kl)


class _Told:
    """What was noted, as series: each value the mean over its questions."""

    def __init__(self, rows: Mapping[str, Sequence[float]], load: Sequence[float], alpha: float) -> None:
        self.rows, self.load = rows, load
        self.calls = {
            OURS: f"nett.cache.cache_craft(store, …, alpha={alpha:g})",
            PREFIX: "nett.cache.cache_craft(store, …, by='prefix')",
            FULL: "nett.cache.cache_craft(store, …, by='full')",
        }

    def __call__(self, name: str, what: str, unit: str, reduced: Callable[[Any], Any] = np.mean) -> Series:
        return Series(name, unit, [float(reduced(self.rows[f"{name}, {what}"]))], self.load[-1:], self.calls[name])


def _late(values: Any) -> Any:
    return np.quantile(values, 0.95)


def _figures(told: _Told, kls: Mapping[str, Sequence[float]], stores: Mapping[str, chunk_store]) -> list[Figure]:
    first = {n: told(n, "first token", "s") for n in (OURS, PREFIX, FULL)}
    late = {n: told(n, "first token", "s", _late) for n in (OURS, PREFIX)}
    work = {n: told(n, "work", "token-layers") for n in (OURS, PREFIX, FULL)}
    kl = {
        n: Series(n, "nats", [float(np.mean(v))], command=f"by that choice of tokens; mean over {len(v)} questions")
        for n, v in kls.items()
    }
    held = {
        n: Series(n, "bytes", [float(s.tiers()["memory"])], command="keys and values in memory at the end")
        for n, s in stores.items()
    }
    what, until = "mean time to the first token", "mean time until what is new is stored, too"
    full, stored = "full recomputation: every tenth question", "prefix caching: to the first token"
    counted = "questions, and chunks that are met for the first time, count"
    apart, look = "KL to full recomputation", "CacheBlend's look at the first layer"
    return [
        Figure(what, first[OURS], first[PREFIX], bar=1.0, aim=0.5),
        Figure("95th percentile of the time to the first token", late[OURS], late[PREFIX]),
        Figure(what, first[OURS], first[FULL], note=full),
        Figure(until, told(OURS, "storing", "s"), first[PREFIX], note=stored),
        Figure("token-layers computed", work[OURS], work[FULL], bar=0.25, note=counted),
        Figure("token-layers computed", work[OURS], work[PREFIX], bar=0.49),
        Figure(apart, kl[OURS], kl[WORK], bar=1.0, note=f"{look} counted"),
        Figure(apart, kl[OURS], kl[BLEND], bar=1.0, note=f"{look} for nothing"),
        Figure(apart, kl[OURS], kl[HEAD], note="as many tokens"),
        Figure(apart, kl[OURS], kl[CHANCE], note="as many tokens"),
        Figure(apart, kl[OURS], kl[REUSE], bar=1.0, note="no token computed again"),
        Figure(apart, kl[OURS], kl[NONE], note="a prompt without its chunks"),
        Figure("bytes of the store", held[OURS], held[PREFIX]),
    ]


def _bed(work: Path, say: Say) -> tuple[Any, list[list[int]], list[int]]:
    folder = work / "SmolLM2-135M"
    if not folder.is_dir():
        say("writing the model in float32")
        spend(["nett", "convert", str(find_model()), str(folder), "--dtype", "float32", "--quiet"], work)
    model, tokenizer = opened(str(folder), "cpu", 0)
    text = language_reference()
    documents = {**text.train, **text.held_out}
    ids = [tokenizer(documents[n], add_special_tokens=False, verbose=False).input_ids for n in sorted(documents)]
    return model, ids, tokenizer(SYSTEM).input_ids


def _pico_bed() -> tuple[Any, list[list[int]], list[int]]:
    """stories260K where the assets are, or else a model of kilobytes on tokens by chance."""
    from claims import stories

    if stories.lacking() is None:
        from claims.cache_beds import _stories, grouped

        torch.set_num_threads(1)
        return grouped(0, 1).model, [ids[1:].tolist() for ids in _stories()], [1]
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
                         vocab_size=64, max_position_embeddings=256)  # fmt: skip
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(2, 64, (40, 120)).tolist()
    return LlamaForCausalLM(config).eval(), tokens, [1]
