"""A saved cache goes on as the one in memory does, and is refused where it would not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nett
from cache.test_policies import SELECTING, steps
from nett.cache.policy import ledger
from nett.core.errors import Refused

SETTINGS = [
    *((name, {"budget": 0.4}) for name in SELECTING),
    ("h2o", {"budget": "20tok", "when": "prefill"}),
    ("kivi", {"bits": 3, "group": 8, "residual": 8}),
    ("xquant", {"bits": 4, "group": 8, "residual": 8}),
    ("xquant_cl", {"bits": 3, "group": 8, "residual": 8, "first": 1}),
    ("fp8", {}),
]


@pytest.mark.parametrize(("name", "more"), SETTINGS, ids=[f"{n}-{len(m)}" for n, m in SETTINGS])
def test_it_goes_on_bit_for_bit(llama: Any, ids: torch.Tensor, tmp_path: Path, name: str, more: Any) -> None:
    """Two rows of unequal length, loaded by a policy made anew, thirteen tokens more."""
    mask = torch.ones(2, 53, dtype=torch.int64)
    if name != "fp8":
        mask[1, :9] = 0
    one, other = (getattr(nett.cache, name)(**more) for _ in range(2))
    with one.on(llama):
        cache = one.cache(llama)
        steps(llama, cache, ids[:, :40], [40], mask)
        one.save(cache, llama, tmp_path / "prefix.safetensors", ids=ids[:, :40])
        expected = rest(llama, cache, ids, mask)
    with other.on(llama):
        loaded = other.load(tmp_path / "prefix.safetensors", llama)
        assert torch.equal(loaded.nett_ids, ids[:, :40])
        assert torch.equal(rest(llama, loaded, ids, mask), expected)
    assert ledger(loaded) == ledger(cache)


def rest(model: Any, cache: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = []
    with torch.no_grad():
        for at in range(40, 53):
            here = slice(at, at + 1)
            said = model(
                ids[:, here], attention_mask=mask[:, : at + 1], position_ids=positions[:, here], past_key_values=cache
            )
            found.append(said.logits)
    return torch.cat(found, 1)


@pytest.fixture
def saved(llama: Any, ids: torch.Tensor, tmp_path: Path) -> Path:
    policy = nett.cache.h2o(budget=0.4)
    with policy.on(llama):
        cache = policy.cache(llama)
        steps(llama, cache, ids[:1, :40], [40])
        policy.save(cache, llama, tmp_path / "prefix.safetensors")
    return tmp_path / "prefix.safetensors"


def test_generate_takes_it(llama: Any, ids: torch.Tensor, saved: Path) -> None:
    policy = nett.cache.h2o(budget=0.4)
    whole = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with policy.on(llama):
        cache = policy.cache(llama)
        steps(llama, cache, ids[:1, :40], [40])
        expected = llama.generate(ids[:1, :48], past_key_values=cache, **whole)
        found = llama.generate(ids[:1, :48], past_key_values=policy.load(saved, llama), **whole)
    assert torch.equal(found, expected)


def test_refusals(llama: Any, saved: Path, tmp_path: Path) -> None:
    policy, bad = nett.cache.h2o(budget=0.4), tmp_path / "bad.safetensors"
    with pytest.raises(Refused, match="no such file"):
        policy.load(bad, llama)
    whole = saved.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 3):
        bad.write_bytes(whole[:size])
        with pytest.raises(Refused, match="cut off"):
            policy.load(bad, llama)
    flipped = bytearray(whole)
    flipped[-50] ^= 4
    bad.write_bytes(flipped)
    with pytest.raises(Refused, match="damaged"):
        policy.load(bad, llama)
    save_file({"a": torch.zeros(2)}, bad)
    with pytest.raises(Refused, match="no cache that was saved"):
        policy.load(bad, llama)
    with pytest.raises(Refused, match=r"another policy: policy = 'cache/h2o', here 'cache/knorm'"):
        nett.cache.knorm(budget=0.4).load(saved, llama)
    with pytest.raises(Refused, match=r"recent = 0\.5, here 0\.25"):
        nett.cache.h2o(budget=0.4, recent=0.25).load(saved, llama)
    with pytest.raises(Refused, match="holds nothing yet"):
        policy.save(policy.cache(llama), llama, bad)
    with pytest.raises(Refused, match="no such folder"):
        policy.save(policy.cache(llama), llama, tmp_path / "nowhere" / "a.safetensors")


def test_another_model_is_refused(llama: Any, saved: Path) -> None:
    """One weight moved by its least bit."""
    policy = nett.cache.h2o(budget=0.4)
    weight = llama.model.layers[2].mlp.up_proj.weight
    before = weight[3, 5].item()
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(10.0))
    try:
        with pytest.raises(Refused, match="of another model: its weights have the hash"):
            policy.load(saved, llama)
    finally:
        with torch.no_grad():
            weight[3, 5] = before
    policy.load(saved, llama)


def test_what_is_written(llama: Any, saved: Path) -> None:
    """Plain safetensors whose tensors are those that the layers hold."""
    with safe_open(saved, "pt") as file:
        said, keys = file.metadata(), file.get_tensor("0.keys")
    assert keys.shape == (1, 2, 16, 8)
    assert json.loads(said["policy"])["policy"] == "cache/h2o" and len(said["model"]) == 32
