"""Laws of what makes a prompt's cache out of stored chunks: the same store and prompt give the same bits, looking does not
change a store, all tokens computed are the model itself, and the ledger is what was done."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from nett.cache.chunk_store import chunk_store
from nett.core.registry import Card

Law = Callable[[Card, Path], None]


@cache
def model() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=64, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def texts(count: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(2)
    return [torch.randint(2, 64, (n,), generator=g).tolist() for n in (4, 9, 8, 10, 3)][:count]


def filled(card: Card) -> tuple[chunk_store, Any]:
    """A store of three chunks, and how the same come in an order in which none stands behind one that it stood behind."""
    system, a, b, c, question = texts(5)
    store = chunk_store(model())
    card.load()(store, system, [a, b, c], question)
    return store, lambda **how: card.load()(store, system, [c, b, a], question, keep=False, **how)


def ways(card: Card) -> list[str]:
    by = card.parameter("by")
    assert by is not None
    return list(by.choices)


def same_store_same_bits(card: Card, folder: Path) -> None:
    for by in ways(card):
        first, second = (filled(card)[1](by=by) for _ in range(2))
        assert torch.equal(first.logits, second.logits)
        assert all(
            torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
            for a, b in zip(first.cache.layers, second.cache.layers, strict=True)
        )


def looking_changes_no_store(card: Card, folder: Path) -> None:
    store, serve = filled(card)
    before = [(v.told, [t.clone() for pair in v.pairs or () for t in pair]) for v in store.all()]
    for by in ways(card):
        served = serve(by=by)
        for layer in served.cache.layers:
            layer.keys.fill_(0)  # what is served is the caller's own
    after = list(store.all())
    assert [v.told for v in after] == [told for told, _ in before]
    for variant, (_, kept) in zip(after, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((t for p in variant.pairs or () for t in p), kept, strict=True))


def all_tokens_are_the_model_itself(card: Card, folder: Path) -> None:
    system, a, b, c, question = texts(5)
    ids = torch.tensor([[*system, *c, *b, *a, *question]])
    with torch.no_grad():
        expected = model()(ids, logits_to_keep=1).logits[0, -1]
    _, serve = filled(card)
    for how in ({"by": "full"}, {"share": 1.0}, {"alpha": 1000.0}):
        assert torch.allclose(serve(**how).logits, expected, atol=1e-5), how


def the_ledger_is_what_was_done(card: Card, folder: Path) -> None:
    for by in ways(card):
        store, serve = filled(card)
        ledger = serve(by=by).ledger
        parts = ledger["parts"]
        assert ledger["tokens"] == sum(p["tokens"] for p in parts) + ledger["question"] == 34
        assert ledger["reused"] + ledger["recomputed"] + ledger["new"] + ledger["question"] == ledger["tokens"]
        computed = sum(p["computed"] for p in parts) + ledger["question"]
        looked = ledger["reused"] if by == "cacheblend" and ledger["recomputed"] else 0
        assert ledger["token_layers"] == computed * store.layers + looked
        assert 0 < ledger["share"] <= 1 and ledger["full_token_layers"] == 34 * store.layers


LAWS: list[Law] = [
    same_store_same_bits,
    looking_changes_no_store,
    all_tokens_are_the_model_itself,
    the_ledger_is_what_was_done,
]
