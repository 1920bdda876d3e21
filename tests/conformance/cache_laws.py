"""Laws of the cache room (stated in nett.cache.protocol): what every policy keeps, whatever it prefers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import nett
from conformance import craft_laws, measure_laws, search_laws
from nett.cache.policy import ledger
from nett.cache.protocol import Coded, Hidden, Kept, Merged
from nett.core.registry import Card
from nett.core.tiny import write_llama

Law = Callable[[Card, Path], None]
HEADS, SLOTS, WIDTH = 4, 40, 16


def laws(card: Card) -> list[Law]:
    if card.command:
        return [same_answer_twice, looking_changes_nothing]
    if card.kind == "make":
        return [*(craft_laws if "store" in card.operands else search_laws).LAWS]
    if card.operands == ("config",):
        return [same_bits_on_a_model, on_a_model_within_its_budget]
    found: list[Law] = [same_call_same_bits, inputs_untouched, heads_are_treated_alike, on_a_model_within_its_budget]
    if "keep" in card.operands:
        found += [no_more_slots_than_asked, all_slots_are_the_full_cache]
    return found


def told(card: Card, folder: Path) -> Any:
    """What a command says of a model of kilobytes and some words, without times."""
    asset = write_llama(folder / "llama", layers=2, hidden=32, dtype="F32")
    (folder / "text.txt").write_text("the sun rose over the road and the river, and dust lay on the house. " * 40)
    quick = dict(getattr(importlib.import_module(card.module), "QUICK", {}))
    more = {"text": folder / "text.txt"} if card.parameter("text") else {}
    if card.parameter("question"):  # about documents, to a model
        about = card.resolve(quick | {"threads": 1}) | {"model": asset}
        answer = card.load()([str(folder / "text.txt")], **about)
        return measure_laws.timeless({k: v for k, v in answer.items() if k != "say"})  # its words tell seconds, too
    threads = {"threads": 1} if card.parameter("threads") else {}
    return measure_laws.timeless(card.load()([str(asset)], **(card.resolve(quick | threads) | more)))


def same_answer_twice(card: Card, folder: Path) -> None:
    assert told(card, folder) == told(card, folder)


def looking_changes_nothing(card: Card, folder: Path) -> None:
    told(card, folder)
    before = {f: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    told(card, folder)
    assert {f: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()} == before


def operands(card: Card, keep: int = 12) -> list[Any]:
    """What a kernel sees of one layer: four heads, forty slots."""
    g = torch.Generator().manual_seed(0)
    recent = torch.rand(HEADS, 32, SLOTS, generator=g)
    known = {
        "keys": torch.randn(HEADS, SLOTS, WIDTH, generator=g).cumsum(1),
        "values": torch.randn(HEADS, SLOTS, WIDTH, generator=g),
        "sizes": torch.ones(HEADS, SLOTS),
        "mass": torch.rand(HEADS, SLOTS, generator=g),
        "reach": torch.arange(SLOTS, 0, -1).float().expand(HEADS, -1).clone(),
        "recent": recent / recent.sum(-1, keepdim=True),
        "queries": torch.randn(HEADS, 2, 32, WIDTH, generator=g),
        "expected": torch.randn(HEADS, 2, WIDTH, generator=g),
        "covariance": torch.eye(WIDTH).expand(HEADS, 2, -1, -1) * 0.1,
        "keep": keep,
        "heads": HEADS,
        "there": torch.ones(HEADS, SLOTS, dtype=torch.bool),
    }
    if "keep" not in card.operands:  # a chunk of whole groups
        known |= {n: torch.randn(HEADS, 64, 32, generator=g) for n in ("keys", "values", "hidden", "before")}
        known |= dict.fromkeys(("key_basis", "value_basis", "basis"))
    return [known[name] for name in card.operands]


def numbers(answer: Any) -> list[torch.Tensor]:
    if isinstance(answer, Kept):
        return [answer.index]
    if isinstance(answer, Merged):
        return [answer.keys, answer.values, answer.sizes, answer.into]
    return [t for g in grids(answer) for t in (g.codes, g.scale, g.low)]


def grids(answer: Any) -> tuple[Any, ...]:
    assert isinstance(answer, Coded | Hidden)
    return (answer.keys, answer.values) if isinstance(answer, Coded) else answer.parts


def same_call_same_bits(card: Card, folder: Path) -> None:
    first, second = (numbers(card.load()(*operands(card))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def inputs_untouched(card: Card, folder: Path) -> None:
    given = operands(card)
    before = [t.clone() for t in given if isinstance(t, torch.Tensor)]
    card.load()(*given)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (t for t in given if isinstance(t, torch.Tensor)), strict=True)
    )


def heads_are_treated_alike(card: Card, folder: Path) -> None:
    """Heads in another order give the same in that order; codes are packed over all heads, so those are decoded."""
    from nett.cache.packing import decoded

    order = torch.tensor([2, 0, 3, 1])
    given = operands(card)
    moved = [t[order] if isinstance(t, torch.Tensor) else t for t in given]
    first, second = card.load()(*given), card.load()(*moved)
    if isinstance(first, Coded | Hidden):
        pairs = [(decoded(a), decoded(b)) for a, b in zip(grids(first), grids(second), strict=True)]
    else:
        pairs = list(zip(numbers(first), numbers(second), strict=True))
    assert all(torch.equal(a[order], b) for a, b in pairs)


def no_more_slots_than_asked(card: Card, folder: Path) -> None:
    for keep in (1, 2, 7, 12, 39, 40):
        answer = card.load()(*operands(card, keep))
        if isinstance(answer, Kept):
            kept = answer.index >= 0
            assert int(kept.sum()) <= HEADS * (SLOTS if card.name == "full" else keep)
            assert bool(((answer.index.diff(dim=1) > 0) | ~kept[:, :-1]).all()), "ascending, none twice"
            assert "there" in card.operands or answer.index.shape[1] <= (SLOTS if card.name == "full" else keep)
        else:
            assert answer.keys.shape[1] <= keep and answer.values.shape[1] == answer.keys.shape[1]
            assert int(answer.into.max()) < answer.keys.shape[1]
            gone = (answer.into < 0).sum(1)
            assert torch.allclose(answer.sizes.sum(1) + gone, torch.full((HEADS,), float(SLOTS)))


@cache
def model() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=64, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def said(cache: Any) -> torch.Tensor:
    """Logits of a prompt of forty tokens and eight that follow one by one."""
    ids = torch.randint(2, 64, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = [model()(ids[:, :40], past_key_values=cache).logits]
        found += [model()(ids[:, i : i + 1], past_key_values=cache).logits for i in range(40, 48)]
    return torch.cat(found, 1)


def all_slots_are_the_full_cache(card: Card, folder: Path) -> None:
    expected = said(transformers.DynamicCache(config=model().config))
    policy = getattr(nett.cache, card.name)(budget=1.0)
    with policy.on(model()):
        assert torch.equal(said(policy.cache(model())), expected)


def same_bits_on_a_model(card: Card, folder: Path) -> None:
    policy = getattr(nett.cache, card.name)()
    with policy.on(model()):
        assert torch.equal(said(policy.cache(model())), said(policy.cache(model())))


def on_a_model_within_its_budget(card: Card, folder: Path) -> None:
    more = {"budget": 0.5} if "keep" in card.operands else {}
    policy = getattr(nett.cache, card.name)(**more)
    with policy.on(model()):
        cache = policy.cache(model())
        assert bool(torch.isfinite(said(cache)).all())
    told = ledger(cache)
    if card.name != "full" and more:
        assert max(told["slots"]) <= 24
    assert told["bytes"] == sum(layer.nbytes for layer in cache.layers) > 0
