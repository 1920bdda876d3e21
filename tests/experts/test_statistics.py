"""Statistics of a text against plain NumPy on the inputs of one mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nett.experts.gathering import gather
from nett.experts.opening import opened
from nett.experts.protocol import STATISTICS
from support.mixtures import tensors


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def test_against_numpy(mixtral: Path) -> None:
    """Mixtral's first mixture (softmax over all experts, the two largest, made to sum to one), written from its formula
    in float64 on the inputs that were kept."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (6, 32)))
    with opened(str(mixtral)) as model:
        found = gather(model, ids, list(STATISTICS))[0]
    held = {n: t.double().numpy() for n, t in tensors(mixtral).items()}
    stem = "model.layers.0.block_sparse_moe"
    x = found["inputs"].double().numpy()
    assert x.shape == (192, 32)
    logits = x @ held[f"{stem}.gate.weight"].T
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    chosen = np.argsort(-odds, axis=1)[:, :2]
    weight = np.take_along_axis(odds, chosen, 1)
    weight /= weight.sum(1, keepdims=True)
    outputs = np.stack(
        [
            (_silu(x @ held[f"{stem}.experts.{e}.w1.weight"].T) * (x @ held[f"{stem}.experts.{e}.w3.weight"].T))
            @ held[f"{stem}.experts.{e}.w2.weight"].T
            for e in range(4)
        ]
    )
    hits = np.zeros((192, 4))
    np.put_along_axis(hits, chosen, 1.0, 1)
    gates = np.zeros((192, 4))
    np.put_along_axis(gates, chosen, weight, 1)
    norms = np.linalg.norm(outputs, axis=-1).T  # [T, E]
    assert np.array_equal(found["counts"], hits.sum(0)) and hits.sum() == 2 * 192
    assert np.array_equal(found["coactive"], hits.T @ hits)
    expected = {
        "mass": gates.sum(0),
        "contribution": (gates * norms).sum(0) / hits.sum(0),
        "logit_products": logits.T @ logits,
        "outputs": outputs.mean(1),
        "output_products": np.einsum("ith,jth->ij", outputs, outputs) / 192,
    }
    for name, value in expected.items():
        assert np.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


def test_inputs_are_spread_over_the_text(mixtral: Path) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (64, 64)))
    with opened(str(mixtral)) as model:
        all_of_them = gather(model, ids[:16], ["inputs"])[1]["inputs"]
        few = gather(model, ids, ["inputs"])[1]["inputs"]
    assert len(all_of_them) == 1024 and len(few) == 1024
    assert torch.allclose(few[:256], all_of_them[::4], atol=1e-6)  # every fourth token of the longer text
