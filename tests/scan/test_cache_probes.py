"""What the cache room would save on a text, against transformers' own hidden states and attention."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.errors import Refused
from nett.core.tiny import write_llama
from nett.scan import cached_text
from nett.scan.attention_sparsity import attention_sparsity
from nett.scan.engine import run
from nett.scan.key_similarity import key_similarity
from nett.scan.layer_input_similarity import layer_input_similarity
from support.cli import nett
from support.scanning import model, parsed, write

QUICK = {"samples": 2, "context": 40, "follow": 6, "most": 100.0}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cached")
    words = np.random.default_rng(0).choice(["sun", "road", "river", "dust"], 300)
    (folder / "text.txt").write_text(" ".join(words))
    return write_llama(folder / "llama", layers=3, dtype="F32"), folder / "text.txt"


@pytest.fixture(scope="module")
def seen(bed: tuple[Path, Path]) -> dict[str, Any]:
    """Hidden states that attention is given, keys and weights, by transformers alone."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from nett.core import torch_model
    from nett.core.windows import read_windows

    asset, text = bed
    ids = read_windows(text, torch_model.tokenizer(asset), samples=2, length=46, vocabulary=64).ids[:, :40]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(asset, dtype=torch.float32, attn_implementation="eager")
    given: list[np.ndarray] = []
    for layer in loaded.eval().model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda m, a, k: given.append(k["hidden_states"].double().numpy()), with_kwargs=True
        )
    cache = transformers.DynamicCache(config=loaded.config)
    with torch.no_grad():
        said = loaded(torch.from_numpy(ids), past_key_values=cache, output_attentions=True)
    return {
        "inputs": given,
        "keys": [layer.keys.double().numpy() for layer in cache.layers],
        "attention": [a.double().numpy() for a in said.attentions],
    }


def test_keys(bed: tuple[Path, Path], seen: dict[str, Any]) -> None:
    asset, text = bed
    said = key_similarity([str(asset)], text=str(text), alike=0.2, **QUICK)
    unit = [k / np.linalg.norm(k, axis=-1, keepdims=True) for k in seen["keys"]]
    cosine = np.stack([(u[:, :, 1:] * u[:, :, :-1]).sum(-1) for u in unit])
    figures = said.figures[str(asset)]
    assert figures["cosine of neighbouring keys"] == pytest.approx(cosine.mean(), abs=1e-5)
    assert figures["keys alike"] == pytest.approx((cosine >= 0.2).mean(), abs=1e-3)
    edge = said.found[0].edge
    assert edge.method == "cache/kvmerger" and edge.target.startswith(f"{asset}::")
    assert parsed(str(edge.command)).params["budget"] == "0.5"
    whole = 3 * 2 * 45 * 2 * 8 * 4  # layers, heads, tokens but the last, keys and values, channels, float32
    assert edge.bytes_freed == pytest.approx(whole * (1 - figures["kvmerger: bytes held"]), abs=1)
    assert key_similarity([str(asset)], text=str(text), **QUICK | {"most": 0.0}).found == ()


def test_inputs(bed: tuple[Path, Path], seen: dict[str, Any]) -> None:
    asset, text = bed
    said = layer_input_similarity([str(asset)], text=str(text), **QUICK)
    inputs = seen["inputs"]
    expected = [(b - a).var() / b.var() for a, b in pairwise(inputs)]
    assert said.figures[str(asset)]["layers"] == pytest.approx(expected, rel=1e-4)
    assert {f.edge.method for f in said.found} <= {"cache/xquant", "cache/xquant_cl"}
    assert said.figures[str(asset)]["xquant: KL"] > -1e-6


def test_attention(bed: tuple[Path, Path], seen: dict[str, Any]) -> None:
    asset, text = bed
    said = attention_sparsity([str(asset)], text=str(text), share=0.5, **QUICK)
    expected = []
    for weights in seen["attention"]:
        mass = weights.reshape(2, 2, 2, 40, 40).mean(2)[:, :, -32:].sum(2)
        ranked = -np.sort(-mass, axis=-1)
        share = np.cumsum(ranked, axis=-1) / ranked.sum(-1, keepdims=True)
        expected.append(((share < 0.5).sum(-1) + 1).mean(0) / 40)
    found = np.array(said.figures[str(asset)]["heads"])
    assert np.allclose(found, expected, atol=1 / 40)  # one token, where sums tie with the half
    names = ("window", "knorm", "h2o", "snapkv", "expected_attention", "ems")
    assert all(f"{n}: KL" in said.figures[str(asset)] for n in names)
    saves = {
        n for n in names if said.figures[str(asset)][f"{n}: bytes held"] < 1
    }  # some hold more than a cache so small
    assert {f.edge.method for f in said.found} == {f"cache/{n}" for n in saves} and {"window", "h2o"} <= saves


def test_one_run_for_all(bed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All three probes on a checkpoint load it once, and it is let go afterwards."""
    from nett.cache import opening

    calls = []
    real = opening.opened
    monkeypatch.setattr(opening, "opened", lambda *a: calls.append(a) or real(*a))
    asset, text = bed
    from nett.scan.engine import run_probes

    probes = {
        n: {"text": str(text), **QUICK} for n in ("key_similarity", "layer_input_similarity", "attention_sparsity")
    }
    said = run_probes(probes, [str(asset)], threads=1)
    assert len(calls) == 1 and len(said.edges) >= 4 and not cached_text._RUNS
    assert said.lossless == 0, "what a cache would save is no byte of the checkpoint"


def test_the_command(bed: tuple[Path, Path]) -> None:
    asset, text = bed
    words = ["--text", str(text), "--context", "40", "--follow", "6", "--most", "100", "--threads", "1"]
    done = nett("scan", "key-similarity", str(asset), *words).succeeded()
    assert "kvmerger: KL" in done.out and "nett cache kvmerger" in done.out
    nett("scan", "--text", str(text)).failed(2, "--text is for checkpoints")


def test_what_cannot_be_run(bed: tuple[Path, Path], tmp_path: Path) -> None:
    asset, text = bed
    path = write(tmp_path / "m", model())
    for probe in (key_similarity, layer_input_similarity, attention_sparsity):
        assert probe([path], text=str(text)).found == ()
        assert probe([str(asset)]).figures == {}
    with pytest.raises(Refused, match="no such text"):
        key_similarity([str(asset)], text=str(tmp_path / "none.txt"))
    said = key_similarity([str(asset)], text=str(text), context=200)
    assert "128 positions" in said.figures[str(asset)]["skipped"]
    assert run([str(asset)], only=["key_similarity"], threads=1).edges == ()
