"""Heads that hold unequally many slots: which, by NumPy; what is held; and attention over each head's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import nett
from cache.test_policies import steps
from nett.cache.adakv import adakv
from nett.cache.policy import ledger


def test_the_highest_of_all_heads_together() -> None:
    """Two rows of two heads; scores without smoothing; three for each head, and the last two in any case."""
    rng = np.random.default_rng(5)
    recent = rng.random((4, 2, 30)) ** np.array([1, 6, 2, 9])[:, None, None]  # some heads look at few tokens
    keep, safeguard = 10, 0.3
    found = adakv(
        torch.from_numpy(recent.astype(np.float32)), torch.ones(4, 30, dtype=torch.bool), 2, keep, kernel=1,
        safeguard=safeguard,
    ).index.numpy()  # fmt: skip
    for row in (0, 1):
        scores = recent.sum(1)[2 * row : 2 * row + 2]
        scores[:, 28:] = np.inf
        chosen = [set(np.argsort(-s, kind="stable")[:3]) for s in scores]
        others = sorted(
            ((s, h, i) for h in (0, 1) for i, s in enumerate(scores[h]) if i not in chosen[h]), reverse=True
        )
        for _, head, i in others[: 2 * keep - 6]:
            chosen[head].add(i)
        for head in (0, 1):
            mine = found[2 * row + head]
            assert mine[mine >= 0].tolist() == sorted(chosen[head])
            assert (np.diff(mine[mine >= 0]) > 0).all() and (np.diff(mine >= 0) >= 0).all(), "-1 first, then ascending"
    assert (found >= 0).sum() == 4 * keep


def test_what_heads_do_not_keep_is_not_held(llama: Any, ids: torch.Tensor) -> None:
    """Bytes are those of each head's slots; the next token's attention is over these alone."""
    policy = nett.cache.adakv(budget=0.5, when="prefill", safeguard=0.0)
    full = nett.cache.full(budget=1.0)
    with policy.on(llama):
        cache = policy.cache(llama)
        steps(llama, cache, ids[:, :80], [80])
    with full.on(llama):
        whole = full.cache(llama)
        steps(llama, whole, ids[:, :80], [80])
    layer, every = cache.layers[0], whole.layers[0]
    counts = layer.counts
    assert counts.sum(1).tolist() == [80, 80] and len(set(counts.flatten().tolist())) > 1, "unequal, one budget a row"
    assert layer.keys.numel() == 0
    assert layer.nbytes == int(counts.sum()) * 2 * 8 * 4 + counts.numel() * 8
    assert ledger(cache)["slots"] == [40] * 3 and ledger(cache)["share"] < 0.51
    query = torch.randn(2, 4, 1, 8, generator=torch.Generator().manual_seed(3))
    layer._unpack()
    found = torch.nn.functional.scaled_dot_product_attention(
        query, layer.keys, layer.values, attn_mask=layer.bias(query, None), enable_gqa=True
    )
    for row in range(2):
        for head in range(4):
            own, kv = int(counts[row, head // 2]), head // 2
            keys, values = (t[row, kv, -own:].double().numpy() for t in (layer.keys, layer.values))
            held = {k.tobytes() for k in every.keys[row, kv].double().numpy()}
            assert all(k.tobytes() in held for k in keys)
            logits = keys @ query[row, head, 0].double().numpy() / np.sqrt(8)
            share = np.exp(logits - logits.max())
            assert np.allclose(found[row, head, 0].numpy(), share @ values / share.sum(), atol=1e-4)


def test_equal_heads_are_snapkv(llama: Any, ids: torch.Tensor) -> None:
    """With all of the budget safeguarded, every head keeps what SnapKV keeps."""
    said = []
    for name, more in (("adakv", {"safeguard": 1.0}), ("snapkv", {})):
        policy = getattr(nett.cache, name)(budget=0.5, **more)
        with policy.on(llama):
            said.append(steps(llama, policy.cache(llama), ids, [70, *[1] * 20]))
    assert torch.allclose(*said, atol=1e-4 * float(said[1].abs().max()))
