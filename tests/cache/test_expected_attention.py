"""Expected attention against NumPy from its formula, and the queries to come against those that come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import nett
from cache.conftest import made
from nett.cache import expecting
from nett.cache.recording import record

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 32,
    "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "scaled": lambda: transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "some channels": lambda: transformers.GPTNeoXConfig(**SIZES, rotary_pct=0.25),
    "some channels, outside": lambda: transformers.PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "neighbours": lambda: transformers.CohereConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2),
}


def expected_of(model: Any, ids: torch.Tensor, **more: Any) -> tuple[Any, Any]:
    """(what a policy expects after these tokens ``[b, h, g, d]``, their recording) of the first layer."""
    policy = nett.cache.expected_attention(budget=1.0, **more)
    one = record(model, ids)
    coming, _, _, query, *_ = one.layers[0]
    layer = policy.cache(model).layers[0]
    layer.comes(coming)
    layer.update(*one.layers[0][1:3])
    layer._expect(query, None)
    return layer._expected(slice(None)), one.layers[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_token_again_is_what_was_expected(family: str) -> None:
    """The same token everywhere has the same query before rotation: the next one is told exactly, without spread."""
    model = made(FAMILIES[family]())
    ids = torch.full((1, 21), 5)
    (mean, spread), _ = expected_of(model, ids[:, :20], ahead=1)
    actual = record(model, ids).layers[0][3][:, :, 20]
    assert torch.allclose(mean.flatten(1, 2), actual, atol=2e-5 * float(actual.abs().max()))
    assert float(spread.abs().max()) < 1e-4 * float(actual.abs().max()) ** 2


def test_it_is_the_formula(llama: Any, ids: torch.Tensor) -> None:
    """Queries from the projection's weights, rotation matrices averaged one by one, scores from the published formula."""
    (mean, spread), (coming, keys, values, *_) = expected_of(llama, ids, ahead=50)
    attention, n, d, half = llama.model.layers[0].self_attn, ids.shape[1], 8, 4
    weight = attention.q_proj.weight.detach().double().numpy()
    q = (coming.hidden.double().numpy() @ weight.T).reshape(2, n, 4, d)[:, 4:]
    mu = q.mean(1)
    cov = np.einsum("bnhi,bnhj->bhij", q - mu[:, None], q - mu[:, None]) / (n - 4)
    rate = 10000.0 ** (-np.arange(half) * 2 / d)
    rotation = np.zeros((d, d))
    for p in range(n, n + 50):
        c, s = np.diag(np.cos(p * rate)), np.diag(np.sin(p * rate))
        rotation += np.block([[c, -s], [s, c]]) / 50
    mu, cov = mu @ rotation.T, rotation @ cov @ rotation.T
    assert np.allclose(mean.flatten(1, 2).numpy(), mu, atol=1e-4 * np.abs(mu).max())
    assert np.allclose(spread.flatten(1, 2).numpy(), cov, atol=1e-4 * np.abs(cov).max())
    k, v = keys.double().numpy().repeat(2, 1)[:, :, 4:], values.double().numpy()[:, :, 4:]
    logits = np.einsum("bhnd,bhd->bhn", k, mu) / d**0.5 + np.einsum("bhni,bhij,bhnj->bhn", k, cov, k) / (2 * d)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    scores = share.reshape(2, 2, 2, -1).mean(2) * np.linalg.norm(v, axis=-1)
    top = np.sort(np.argsort(-scores, axis=-1)[..., :26], axis=-1) + 4
    from nett.cache.expected_attention import expected_attention

    flat = (t.flatten(0, 1) for t in (keys, values, mean, spread))
    found = expected_attention(*flat, 30, ahead=50).index.reshape(2, 2, 30).numpy()
    assert (found[..., :4] == np.arange(4)).all()
    assert (found[..., 4:] == top).all()


def test_sums_of_pieces_are_those_of_all(llama: Any, ids: torch.Tensor) -> None:
    """Tokens in pieces, padding left out, first tokens not counted."""
    coming, _, _, query, *_ = record(llama, ids).layers[0]
    whole = expecting.added(None, query, coming, None, 0, 4)
    first, rest = (record(llama, ids).layers[0] for _ in range(2))
    cut = lambda c, s: type(c)(  # noqa: E731
        c.hidden[:, s], None, None, c.positions[:, s], c.way, tuple(t[:, s] for t in c.rotation)
    )
    a, b = slice(0, 30), slice(30, None)
    sums = expecting.added(None, query[:, :, a], cut(first[0], a), None, 0, 4)
    sums = expecting.added(sums, query[:, :, b], cut(rest[0], b), None, 30, 4)
    for x, y in zip(sums, whole, strict=True):
        assert torch.allclose(x, y, atol=1e-3)
    real = torch.ones(2, ids.shape[1], dtype=torch.bool)
    real[0, :10] = False
    masked = expecting.added(None, query, coming, real, 0, 4)
    assert masked[2].tolist() == [ids.shape[1] - 14, ids.shape[1] - 4]
    left = expecting.added(None, query[:, :, :14], cut(first[0], slice(0, 14)), None, 0, 4)
    assert torch.allclose(masked[0][0], whole[0][0] - left[0][0], atol=1e-3)
