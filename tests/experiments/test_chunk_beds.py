"""What claim P11 and the bench of chunk caches count by: questions by Zipf's law, a budget kept by plans, equal work."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from claims.chunk_beds import CHUNKS, TOP, Corpus, affordable, at_equal_work, fill  # noqa: E402

import nett  # noqa: E402
from nett.cache.chunk_store import chunk_store  # noqa: E402


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    texts = np.random.default_rng(0).integers(2, 64, (60, 40)).tolist()
    return Corpus.of(texts, [1], chunk=12, question=3, gold=4, seed=0)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=64, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_questions(corpus: Corpus) -> None:
    asked = list(corpus.queries(400, 3))
    assert (
        [q.chunks for q in asked]
        == [q.chunks for q in corpus.queries(400, 3)]
        != [q.chunks for q in corpus.queries(400, 4)]
    )
    drawn = Counter(corpus.chunks.index(c) for q in asked for c in q.chunks)
    assert all(len(set(q.chunks)) == TOP and len(q.question) == 3 and len(q.gold) == 4 for q in asked)
    # Without repeats within a question, the first chunk is in most of them, and the tenth in about a seventh.
    assert drawn[0] > 400 / 2 and 30 < drawn[9] < 100 and len(drawn) > CHUNKS / 2
    for query in asked[:20]:
        assert any(tuple(query.question) == corpus.after[corpus.chunks.index(c)][:3] for c in query.chunks)
    with pytest.raises(ValueError, match="100 are drawn"):
        Corpus.of([[1] * 40], [1], chunk=12, question=3, gold=4, seed=0)


def test_the_budget_and_equal_work(corpus: Corpus, model: Any) -> None:
    asked = list(corpus.queries(12, 0))
    store = chunk_store(model)
    fill(store, corpus, asked)
    alpha = affordable(store, corpus, asked, 0.3)
    work: dict[str, int] = {"ours": 0, "whole": 0, "blend": 0}
    for query in asked:
        ours = nett.cache.cache_craft(store, [1], query.chunks, query.question, alpha=alpha, keep=False).ledger
        share = at_equal_work(store, ours)
        how = {"by": "cacheblend", "share": share} if share else {"by": "reuse"}
        blend = nett.cache.cache_craft(store, [1], query.chunks, query.question, keep=False, **how).ledger
        work["ours"] += ours["token_layers"]
        work["whole"] += ours["full_token_layers"]
        work["blend"] += blend["token_layers"]
        parts = sum(p["state"] != "new" for p in ours["parts"])
        assert share == 0 or abs(blend["token_layers"] - ours["token_layers"]) <= parts * store.layers, "rounded up"
    assert work["ours"] <= 0.3 * work["whole"] < 1.3 * work["ours"]
