"""EMS against its formulas in NumPy, head by head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nett.cache.ems import ems, scores
from support.tensors import Array

HEADS, COUNT, WIDTH, KEEP = 3, 30, 6, 9


def given(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    recent = rng.random((HEADS, 32, COUNT)) ** 3
    return {
        "keys": rng.normal(size=(HEADS, COUNT, WIDTH)) + 1.0,
        "values": rng.normal(size=(HEADS, COUNT, WIDTH)) + 1.0,
        "sizes": np.ones((HEADS, COUNT)),
        "mass": rng.random((HEADS, COUNT)) * np.arange(COUNT, 0, -1),
        "reach": np.broadcast_to(np.arange(COUNT, 0, -1.0), (HEADS, COUNT)).copy(),
        "recent": recent / recent.sum(-1, keepdims=True),
    }


def asked(arrays: dict[str, Array], keep: int = KEEP, **more: Any) -> Any:
    return ems(*(torch.from_numpy(a.astype(np.float32)) for a in arrays.values()), keep, **more)


def by_hand(arrays: dict[str, Array], head: int, threshold: float, window: int) -> tuple[Array, Array, list[int]]:
    keys, values, mass, reach, recent = (arrays[n][head] for n in ("keys", "values", "mass", "reach", "recent"))
    everywhere, mean = mass / reach, recent.mean(0)
    here = np.array([mean[max(0, i - 2) : i + 3].mean() for i in range(COUNT)])
    score = np.maximum(everywhere * here.mean() / everywhere.mean(), here)
    ranked = score.copy()
    ranked[COUNT - window :] = np.inf
    order = np.argsort(-ranked, kind="stable")
    stay, spare = np.sort(order[:KEEP]), order[KEEP : 2 * KEEP]
    place = np.full(COUNT, -1)
    place[stay] = np.arange(KEEP)

    def cosine(a: Array, b: Array) -> float:
        return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    for j in spare:
        alike = [cosine(keys[j], keys[c]) * cosine(values[j], values[c]) for c in stay]
        if max(alike) >= threshold:
            place[j] = int(np.argmax(alike))
    new_keys, new_values = np.zeros((KEEP, WIDTH)), np.zeros((KEEP, WIDTH))
    for slot, centre in enumerate(stay):
        members = np.flatnonzero(place == slot)
        way = sum(score[j] * keys[j] / np.linalg.norm(keys[j]) for j in members)
        new_keys[slot] = way / np.linalg.norm(way) * np.linalg.norm(keys[centre])
        new_values[slot] = sum(score[j] * values[j] for j in members) / score[members].sum()
    return new_keys, new_values, place.tolist()


@pytest.mark.parametrize("threshold", [0.3, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_formula(seed: int, threshold: float) -> None:
    arrays = given(seed)
    found = asked(arrays, threshold=threshold, window=4)
    merged = 0
    for head in range(HEADS):
        keys, values, place = by_hand(arrays, head, threshold, 4)
        assert found.into[head].tolist() == place
        assert np.allclose(found.keys[head].numpy(), keys, atol=1e-4)
        assert np.allclose(found.values[head].numpy(), values, atol=1e-4)
        merged += sum(p >= 0 for p in place) - KEEP
    assert merged > 0, "nothing was merged: the test says nothing"


def test_nothing_alike_is_pure_eviction() -> None:
    """At a threshold of 2, or without a pool, the highest scores stay to the bit."""
    arrays = given(2)
    for more in ({"threshold": 2.0}, {"pool": 0.0}):
        found = asked(arrays, window=0, **more)
        tensors = [torch.from_numpy(arrays[n].astype(np.float32)) for n in ("mass", "reach", "recent")]
        top = scores(*tensors, 5, "max").topk(KEEP, dim=1).indices.sort(dim=1).values
        expected = torch.from_numpy(arrays["keys"].astype(np.float32)).gather(
            1, top.unsqueeze(-1).expand(-1, -1, WIDTH)
        )
        assert torch.equal(found.keys, expected)
        assert bool((found.sizes == 1).all())


def test_equal_tokens_are_one_slot() -> None:
    """All alike: what is merged is what was there, and with sizes the attention is exact."""
    arrays = given(3)
    for name in ("keys", "values"):
        arrays[name][:] = arrays[name][:, :1]
    found = asked(arrays, keep=5, pool=5.0, window=0, size_bias=True)
    assert torch.allclose(found.keys, torch.from_numpy(arrays["keys"].astype(np.float32))[:, :5], atol=1e-5)
    assert found.sizes.sum(1).tolist() == [COUNT] * HEADS


def test_scores_one_by_one() -> None:
    arrays = {n: torch.from_numpy(a.astype(np.float32)) for n, a in given(4).items()}
    parts = [
        scores(arrays["mass"], arrays["reach"], arrays["recent"], 5, by) for by in ("global", "local", "max", "sum")
    ]
    assert torch.equal(parts[2], parts[0].maximum(parts[1])) and torch.allclose(parts[3], parts[0] + parts[1])
    assert torch.allclose(parts[0].mean(1), parts[1].mean(1), rtol=1e-4)
