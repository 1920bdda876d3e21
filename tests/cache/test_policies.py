"""Every policy on real attention of transformers: exact where nothing goes, sound where something does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import nett
from cache.conftest import made
from nett.cache.budget import Budget
from nett.cache.policy import ledger
from nett.core.errors import Refused, UsageError

SELECTING = ("full", "window", "random", "knorm", "h2o", "snapkv", "adakv", "expected_attention", "kvmerger", "ems")


def policy(name: str, **more: Any) -> Any:
    return getattr(nett.cache, name)(**more)


def steps(model: Any, cache: Any, ids: torch.Tensor, sizes: list[int], mask: Any = None) -> torch.Tensor:
    """Logits of the tokens given in pieces of ``sizes``."""
    found, at = [], 0
    with torch.no_grad():
        for size in sizes:
            more = {} if mask is None else {"attention_mask": mask[:, : at + size]}
            found.append(model(ids[:, at : at + size], past_key_values=cache, **more).logits)
            at += size
    return torch.cat(found, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SELECTING)
def test_a_budget_of_all_is_the_full_cache(llama: Any, ids: torch.Tensor, name: str, attention: str) -> None:
    """Bit for bit, whatever the pieces; eager to rounding, since policies attend by sdpa."""
    before = llama.config._attn_implementation
    llama.set_attn_implementation(attention)
    try:
        expected = steps(llama, transformers.DynamicCache(config=llama.config), ids, [60, 1, 1, 20, 1])
        one = policy(name, budget=1.0)
        with one.on(llama):
            found = steps(llama, one.cache(llama), ids, [60, 1, 1, 20, 1])
        assert llama.config._attn_implementation == attention
    finally:
        llama.set_attn_implementation(before)
    if attention == "sdpa":
        assert torch.equal(found, expected)
    else:
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", SELECTING[1:])
def test_pieces_of_any_size_after_the_prompt(llama: Any, ids: torch.Tensor, name: str) -> None:
    """Tokens that follow a prompt that was made smaller give the same one by one and all together."""
    one = policy(name, budget=0.3, when="prefill")
    found = []
    with one.on(llama):
        for sizes in ([64, 32], [64, 16, 16], [64, *[1] * 32]):
            cache = one.cache(llama)
            found.append(steps(llama, cache, ids, sizes)[:, 64:])
            assert ledger(cache)["slots"] == [20 + 32] * 3
    scale = float(found[0].abs().max())
    assert torch.allclose(found[1], found[0], atol=1e-5 * scale)
    assert torch.allclose(found[2], found[0], atol=1e-5 * scale)


@pytest.mark.parametrize("name", SELECTING[1:])
@pytest.mark.parametrize("budget", ["20tok", 0.25, "24kB"])
def test_never_more_than_the_budget(llama: Any, ids: torch.Tensor, name: str, budget: Any) -> None:
    one = policy(name, budget=budget)
    with one.on(llama), torch.no_grad():
        cache = one.cache(llama)
        for size, start in [(60, 0), *[(1, 60 + i) for i in range(30)]]:
            logits = llama(ids[:1, start : start + size], past_key_values=cache).logits
            assert bool(torch.isfinite(logits).all())
            told = ledger(cache)
            if budget == "24kB":
                assert told["bytes"] <= 24_000
            else:
                most = 20 if budget == "20tok" else -(-told["seen"] // 4)
                assert max(told["slots"]) <= most
    assert told["seen"] == 90 and told["share"] < 0.75


@pytest.mark.parametrize("name", SELECTING[1:])
def test_rows_of_unequal_length_are_each_alone(llama: Any, ids: torch.Tensor, name: str) -> None:
    """Padded at the front; prompt and twelve tokens more."""
    lengths = (40, 25)
    prompt = torch.full((2, 40), 0)
    mask = torch.zeros(2, 52, dtype=torch.int64)
    for i, n in enumerate(lengths):
        prompt[i, 40 - n :] = ids[i, :n]
        mask[i, 40 - n :] = 1
    more = ids[:, 60:72]
    one = policy(name, budget=0.4)
    with one.on(llama), torch.no_grad():
        together = one.cache(llama)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        llama(prompt, attention_mask=mask[:, :40], position_ids=positions[:, :40], past_key_values=together)
        found = []
        for i in range(12):
            at = slice(40 + i, 41 + i)
            found.append(
                llama(
                    more[:, i : i + 1], attention_mask=mask[:, : 41 + i], position_ids=positions[:, at],
                    past_key_values=together,
                ).logits
            )  # fmt: skip
        for i, n in enumerate(lengths):
            alone = one.cache(llama)
            expected = steps(llama, alone, torch.cat([ids[i : i + 1, :n], more[i : i + 1]], 1), [n, *[1] * 12])[:, n:]
            assert torch.allclose(torch.cat(found, 1)[i], expected[0], atol=1e-4 * float(expected.abs().max())), (
                name,
                i,
            )


def test_attention_that_was_noted_is_the_models_own(llama: Any, ids: torch.Tensor) -> None:
    """Mass and reach against eager weights, prompt and single tokens."""
    one = policy("h2o", budget=1.0)
    with one.on(llama):
        cache = one.cache(llama)
        steps(llama, cache, ids, [50, 1, 1])
    llama.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = llama(ids[:, :52], output_attentions=True).attentions
    finally:
        llama.set_attn_implementation("sdpa")
    for layer, expected in zip(cache.layers, attentions, strict=True):
        by_head = expected.double().numpy().reshape(2, 2, 2, 52, 52).mean(2).sum(2)
        assert np.allclose(layer.mass.numpy(), by_head, atol=1e-4)


def test_equal_tokens_merged_are_exact(llama: Any) -> None:
    """Four copies of each key and value as one slot of size four: the attention is that of all."""
    from nett.cache.kvmerger import kvmerger

    g = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 8, 16, generator=g).repeat_interleave(4, 1) for _ in range(2))
    mass = torch.rand(2, 32, generator=g)
    found = kvmerger(keys, values, mass, torch.ones(2, 32), 8, recent=0.0, heavy=0.0)
    assert found.sizes.tolist() == [[4.0] * 8] * 2
    query = torch.randn(2, 5, 16, generator=g)
    whole = (query @ keys.transpose(1, 2)).softmax(-1) @ values
    mine = (query @ found.keys.transpose(1, 2) + found.sizes.log()[:, None]).softmax(-1) @ found.values
    assert torch.allclose(mine, whole, atol=1e-6)


def test_kvmerger_is_the_formula() -> None:
    """One head against NumPy: sets by the most alike neighbours, pivots, Gaussian weights."""
    from nett.cache.kvmerger import kvmerger

    rng = np.random.default_rng(3)
    keys, values, mass = rng.normal(size=(24, 8)), rng.normal(size=(24, 8)), rng.random(24)
    keys = np.cumsum(keys, axis=0)  # neighbours are alike
    keep, last = 14, 4
    found = kvmerger(
        *(torch.from_numpy(a[None].astype(np.float32)) for a in (keys, values, mass, np.ones(24))), keep,
        recent=last / keep, heavy=0.0, sigma=5.0,
    )  # fmt: skip
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    alike = (unit[1:] * unit[:-1]).sum(1)
    alike[24 - last - 1 :] = -np.inf
    joined = set(np.argsort(-alike, kind="stable")[: 24 - keep] + 1)
    sets: list[list[int]] = []
    for i in range(24):
        if i in joined:
            sets[-1].append(i)
        else:
            sets.append([i])
    assert found.keys.shape == (1, keep, 8) and len(sets) == keep
    sigma = 5.0 * (8 / 128) ** 0.5
    for slot, members in enumerate(sets):
        pivot = members[int(np.argmax(mass[members]))]
        g = np.exp(-((keys[members] - keys[pivot]) ** 2).sum(1) / (2 * sigma**2))
        w = g / g.sum()
        assert np.allclose(found.keys[0, slot].numpy(), w @ keys[members], atol=1e-4)
        assert np.allclose(found.values[0, slot].numpy(), w @ values[members], atol=1e-4)
        assert float(found.sizes[0, slot]) == len(members)


@pytest.mark.parametrize("skip", ["0", "1", "-1", "0,-1"])
def test_layers_that_are_left_alone(llama: Any, ids: torch.Tensor, skip: str) -> None:
    """They hold all tokens, all together hold what the budget says, and pieces of any size give the same."""
    one = policy("kvmerger", budget=0.7, when="prefill", skip_layers=skip)
    left = {int(w) % 3 for w in skip.split(",")}
    found = []
    with one.on(llama):
        for sizes in ([64, 32], [64, *[1] * 32]):
            cache = one.cache(llama)
            found.append(steps(llama, cache, ids, sizes)[:, 64:])
            slots = [held - 32 for held in ledger(cache)["slots"]]
            assert [n == 64 for n in slots] == [i in left for i in range(3)]
            assert sum(slots) <= 3 * 45 < sum(slots) + 3
    assert torch.allclose(found[1], found[0], atol=1e-5 * float(found[0].abs().max()))
    small = policy("kvmerger", budget=0.2, skip_layers=skip)
    with small.on(llama), pytest.raises(Refused, match="leaves nothing for"):
        steps(llama, small.cache(llama), ids, [64])
    for bad in ("3", "-4", "first", "1.5"):
        with pytest.raises(UsageError, match="is no layer of 3"):
            policy("kvmerger", budget=0.5, skip_layers=bad).cache(llama)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes(llama: Any, ids: torch.Tensor, bits: int) -> None:
    """What is held is what was asked for, a token is rounded once, and more bits are nearer."""
    one = policy("kivi", bits=bits, group=16, residual=8)
    with one.on(llama):
        cache = one.cache(llama)
        found = steps(llama, cache, ids, [60, *[1] * 30])
        first = [c.keys.codes.clone() for c in cache.layers[0].chunks]
        steps(llama, cache, ids[:, :1], [1])
    told = ledger(cache)
    assert told["slots"] == [91] * 3 and 8 <= cache.layers[0].keys.shape[-2] < 24
    assert all(torch.equal(a, c.keys.codes) for a, c in zip(first, cache.layers[0].chunks, strict=False))
    exact = steps(llama, transformers.DynamicCache(config=llama.config), ids, [60, *[1] * 30])
    far = float((found - exact)[:, 60:].abs().mean() / exact.abs().mean())
    assert far < {2: 0.9, 3: 0.5, 4: 0.25, 8: 0.02}[bits]
    assert told["share"] < {2: 0.42, 3: 0.45, 4: 0.48, 8: 0.6}[bits]  # scales of float32 for groups of 16 and 8


def test_transformers_own(llama: Any, ids: torch.Tensor) -> None:
    """Bit for bit what its own cache says, and every tensor of it counted."""
    own = transformers.QuantizedCache("fp8", llama.config)
    expected = steps(llama, own, ids, [60, *[1] * 30])
    one = policy("fp8")
    with one.on(llama):
        cache = one.cache(llama)
        assert torch.equal(steps(llama, cache, ids, [60, *[1] * 30]), expected)
        assert llama.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 99)
    told = ledger(cache)
    assert told["bytes"] == 3 * 2 * (2 * 2 * 90 * 8 + 4)  # layers, keys and values: codes of a byte, a scale of four
    assert told["full_bytes"] == 3 * 2 * 2 * 2 * 90 * 8 * 4 and told["slots"] == [90] * 3
    exact = steps(llama, transformers.DynamicCache(config=llama.config), ids, [60, *[1] * 30])
    far = float((expected - exact)[:, 60:].abs().mean() / exact.abs().mean())
    assert 0 < far < 0.3
    with pytest.raises(UsageError, match="its bits decide"):
        policy("fp8", budget=0.5)


def test_generation(llama: Any, ids: torch.Tensor) -> None:
    """`generate` with a policy on the model: greedy equals the full cache at a budget of all; beams and samples run."""
    expected = llama.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    with policy("h2o", budget=1.0).on(llama):
        assert torch.equal(llama.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), expected)
    with policy("h2o", budget=0.3).on(llama):
        for more in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
            found = llama.generate(ids, max_new_tokens=8, pad_token_id=0, **more)
            assert found.shape[1] <= 104
    assert "generate" not in vars(llama)
    assert not llama._forward_pre_hooks


def test_budgets() -> None:
    assert Budget.of("512tok").slots(10_000, 1) == 512 == Budget.of(512).slots(1, 1)
    assert Budget.of(0.35).slots(100, 1) == 35 == Budget.of("35%").slots(100, 1)
    assert Budget.of("3MB").slots(1, 1000) == 3000
    for bad in ("", "much", 0, -1, "0%", 1.5, "3 apples"):
        with pytest.raises(UsageError, match="budget ="):
            Budget.of(bad)
    with pytest.raises(Refused, match="holds no token"):
        Budget.of("10B").slots(1, 1000)


def test_models_that_do_not_fit(llama: Any) -> None:
    sliding = transformers.MistralConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        vocab_size=16, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(Refused, match="sliding window"), policy("knorm", budget=0.5).on(made(sliding)):
        pass
    with pytest.raises(UsageError, match="its bits decide"):
        policy("kivi", budget=0.5)
    with pytest.raises(UsageError, match="Did you mean 'recent'"):
        policy("h2o", budget=0.5, recnt=0.1)
    with pytest.raises(UsageError, match="when ="):
        policy("h2o", when="sometimes")
