"""Prompts whose chunks come back: questions draw chunks of a corpus by Zipf's law, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import nett
from nett.cache.chunk_judging import divergence, following
from nett.cache.chunk_plan import planned
from nett.cache.chunk_serving import Served
from nett.cache.chunk_store import chunk_store

CHUNKS, TOP, EXPONENT = 100, 4, 1.0
ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Query:
    """chunks: token ids of each, in the order of the prompt; question: the tokens that follow one of them in its text;
    gold: those after."""

    chunks: Sequence[Sequence[int]]
    question: Sequence[int]
    gold: Sequence[int]


@dataclass(frozen=True)
class Corpus:
    """``CHUNKS`` chunks, each with the tokens that follow it; ``system``: what every prompt begins with."""

    system: Sequence[int]
    chunks: Sequence[Sequence[int]]
    after: Sequence[Sequence[int]]
    question: int

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[int]], system: Sequence[int], *, chunk: int, question: int, gold: int, seed: int
    ) -> Corpus:
        """Chunks of ``chunk`` tokens one after the other from token sequences, ``CHUNKS`` of them by chance."""
        found = [
            (tuple(ids[i : i + chunk]), tuple(ids[i + chunk : i + chunk + question + gold]))
            for ids in texts
            for i in range(0, len(ids) - chunk - question - gold + 1, chunk)
        ]
        found = list(dict(found).items())  # equal chunks are one
        if len(found) < CHUNKS:
            raise ValueError(f"the texts have {len(found)} chunks, and {CHUNKS} are drawn from")
        some = np.random.default_rng(seed).permutation(len(found))[:CHUNKS]
        return cls(tuple(system), [found[i][0] for i in some], [found[i][1] for i in some], question)

    def queries(self, count: int, seed: int) -> Iterator[Query]:
        """Each draws ``TOP`` different chunks, the k-th most popular in proportion to 1 / k."""
        rng = np.random.default_rng([seed, 11])
        odds = 1 / np.arange(1, CHUNKS + 1) ** EXPONENT
        for _ in range(count):
            drawn = rng.permutation(rng.choice(CHUNKS, TOP, replace=False, p=odds / odds.sum()))
            about = self.after[drawn[rng.integers(TOP)]]
            yield Query([self.chunks[i] for i in drawn], about[: self.question], about[self.question :])


def affordable(store: chunk_store, corpus: Corpus, queries: Sequence[Query], share: float) -> float:
    """The largest of :data:`ALPHAS` at which stored chunks are computed again so little that with the question no more than
    ``share`` of the token-layers are. By plans alone, on a store that has all chunks; nothing is computed."""
    best = ALPHAS[0]
    for alpha in ALPHAS:
        computed = whole = 0
        for query in queries:
            parts = planned(
                store,
                corpus.system,
                query.chunks,
                by="cache_craft",
                alpha=alpha,
                share=0.0,
                renew=1.0,
                sink=False,
                seed=0,
            )
            computed += sum(len(p.chosen) for p in parts) + len(query.question)
            whole += sum(len(p.ids) for p in parts) + len(query.question)
        if computed <= share * whole:
            best = alpha
    return best


def fill(store: chunk_store, corpus: Corpus, queries: Sequence[Query]) -> None:
    """All chunks of these queries come to the store, as cache_craft brings them there."""
    for query in queries:
        nett.cache.cache_craft(store, corpus.system, query.chunks, query.question, alpha=ALPHAS[0])


def at_equal_work(store: chunk_store, ours: dict[str, Any]) -> float:
    """The share of stored chunks' tokens that CacheBlend may compute again for the token-layers that ``ours`` (a ledger)
    took, when its look at the first layer counts; 0 where it has none left."""
    stored = [p for p in ours["parts"] if p["state"] != "new"]
    tokens = sum(p["tokens"] for p in stored)
    apart = sum(p["tokens"] for p in stored if not p["same_context"])
    left = (ours["recomputed"] * store.layers - tokens) / (store.layers - 1)
    return max(0.0, left / apart) if apart else 0.0


@dataclass(frozen=True)
class Compared:
    """KL(full || mine) in nats of each place, its mean; negative log likelihood of the gold tokens, the mean; top-1 answers
    that changed, the share."""

    kl: float
    nll: float
    flips: float


def compared(model: Any, full: Any, mine: Served, gold: Sequence[int]) -> Compared:
    """``full``: log probabilities ``[n, v]`` of the places of ``gold``."""
    here = following(model, mine, gold)
    at = torch.tensor(list(gold))[:, None]
    flips = (full.argmax(-1) != here.argmax(-1)).float().mean()
    return Compared(float(divergence(full, here).mean()), float(-here.gather(-1, at).mean()), float(flips))
