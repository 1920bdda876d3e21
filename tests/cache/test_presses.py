"""Policies as presses of kvpress: without it a clear error, with it (in the environment that NETT_KVPRESS names) kvpress' own
hooks hold what this room's layers hold."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

import nett

CHECK = """
import torch, transformers, nett
from kvpress import ExpectedAttentionPress, KnormPress, StreamingLLMPress
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from nett.cache.presses import PolicyPress
from nett.core.errors import Refused, UsageError

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                     intermediate_size=64, vocab_size=64, max_position_embeddings=128)).eval()
ids = torch.randint(2, 64, (2, 60))

def held(press):
    cache = DynamicCache()
    with torch.no_grad(), press(model):
        model(ids, past_key_values=cache)
    return [(l.keys, l.values) for l in cache.layers]

def same(a, b):
    order = lambda k: k.norm(dim=-1).argsort(dim=-1)  # kvpress' presses keep their slots in no order
    return all(torch.allclose(x.norm(dim=-1).sort(dim=-1).values, y.norm(dim=-1).sort(dim=-1).values, atol=1e-5)
               for p, q in zip(a, b) for x, y in zip(p, q))

for name in ("kvmerger", "ems", "h2o", "snapkv", "knorm", "window"):
    for ratio in (0.0, 0.3, 0.65):
        found = held(PolicyPress(getattr(nett.cache, name)(), ratio))
        assert all(k.shape == v.shape == (2, 2, int(60 * (1 - ratio)), 8) for k, v in found), name
assert same(held(PolicyPress(nett.cache.knorm(), 0.4)), held(KnormPress(0.4)))
assert same(held(PolicyPress(nett.cache.window(sinks=4), 0.4)), held(StreamingLLMPress(0.4)))
# in this room, on the same model: what the layers of the cache hold after the prompt
for name in ("kvmerger", "ems"):
    policy = getattr(nett.cache, name)(budget="36tok", when="prefill")
    with torch.no_grad(), policy.on(model):
        cache = policy.cache(model)
        model(ids, past_key_values=cache)
    for (k, v), layer in zip(held(PolicyPress(getattr(nett.cache, name)(), 0.4)), cache.layers):
        assert torch.allclose(k, layer.keys, atol=1e-4) and torch.allclose(v, layer.values, atol=1e-4), name
        break  # later layers see what the first one's attention gave, which here has sizes
for bad in (lambda: PolicyPress(nett.cache.kivi()), lambda: PolicyPress(nett.cache.expected_attention())):
    try:
        bad()
    except Refused:
        continue
    raise SystemExit("was not refused")
try:
    PolicyPress(nett.cache.h2o(), 1.0)
except UsageError:
    print("all is well", transformers.__version__)
"""


@pytest.mark.skipif(importlib.util.find_spec("kvpress") is not None, reason="kvpress is installed here")
def test_without_kvpress() -> None:
    with pytest.raises(ImportError, match=r"needs the Python package 'kvpress'.*environment of its own"):
        importlib.import_module("nett.cache.presses")


@pytest.mark.skipif("NETT_KVPRESS" not in os.environ, reason="NETT_KVPRESS names no Python that has kvpress")
def test_in_its_environment() -> None:
    source = Path(nett.__file__).parent.parent
    done = subprocess.run(
        [os.environ["NETT_KVPRESS"], "-c", CHECK],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "all is well" in done.stdout, done.stderr[-2000:]
