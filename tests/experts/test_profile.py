"""nett experts profile against plain NumPy on what transformers itself routes, and on planted duplicates and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nett.core.errors import Refused, UsageError
from nett.core.tiny import write_llama
from nett.core.windows import stream_windows
from nett.experts import profiling, tracing
from nett.experts.profile import profile
from nett.experts.tally import balance, divergence, jackknife
from support.cli import nett
from support.locality import sch, srp
from support.mixtures import upcycled, write_mixture

WORDS = ["sun", "road", "river", "letter", "house", "dust", "noon", "brother", "water", "air", "stone", "bread"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(" ".join(np.random.default_rng(i).choice(WORDS, 12)) for i in range(120)) + "\n")
    return file


def told(model: Path, text: Any, **more: Any) -> dict[str, Any]:
    found = profile([str(model)], text=str(text), **({"length": 32, "samples": 0, "threads": 1} | more))
    return {k: v for k, v in found.items() if "seconds" not in k and k != "say"}


@pytest.fixture(scope="module")
def routed(mixtral: Path, text: Path) -> list[tuple[Any, Any]]:
    """(chosen [n, T, k], their weights) of each mixture on all windows of the text, from the router logits that transformers
    gives, by Mixtral's rule in float64: softmax, the two largest, made to sum to one."""
    import transformers

    from nett.core.torch_model import quiet

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(mixtral))
    ids = np.asarray(tokenizer(text.read_text(), add_special_tokens=False, verbose=False)["input_ids"])
    ids = ids[: ids.size // 32 * 32].reshape(-1, 32)
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(mixtral), dtype=torch.float32).eval()
        logits = model(torch.from_numpy(ids), output_router_logits=True).router_logits
    found = []
    for layer in logits:
        odds = np.exp(layer.double().numpy())
        odds /= odds.sum(1, keepdims=True)
        chosen = np.argsort(-odds, axis=1)[:, :2]
        weight = np.take_along_axis(odds, chosen, 1)
        weight /= weight.sum(1, keepdims=True)
        found.append((chosen.reshape(*ids.shape, 2), weight.reshape(*ids.shape, 2)))
    return found


def test_against_numpy_on_what_transformers_routes(mixtral: Path, text: Path, routed: Any) -> None:
    found = told(mixtral, text)
    assert found["tokens"] == routed[0][0].shape[0] * 32
    for layer, (chosen, weight) in zip(found["layers"], routed, strict=True):
        one = np.eye(4, dtype=int)[chosen].sum(2).reshape(-1, 4)
        assert layer["counts"] == one.sum(0).tolist()
        assert layer["together"] == (one.T @ one).tolist()
        assert layer["mass"] == pytest.approx([weight[chosen == e].sum() for e in range(4)], rel=1e-4)
        pair = layer["coactive"][0]
        both, least = (one.T @ one)[pair["first"], pair["second"]], min(one.sum(0)[[pair["first"], pair["second"]]])
        assert pair["share"] == pytest.approx(both / least, abs=1e-5)
        most = max(one.sum(0)[[pair["first"], pair["second"]]])
        assert pair["lift"] == pytest.approx(both / least / (most / len(one)), rel=1e-3)
        for ahead in (0, 4, 16):
            rates = [np.mean([sch(w.tolist(), ahead, size) for w in chosen]) for size in range(1, 5)]
            assert layer["hits"][str(ahead)] == pytest.approx(rates, abs=2e-5)


def test_consistency_is_that_of_brute_force_over_all_windows(mixtral: Path, text: Path, routed: Any) -> None:
    """The sets of all windows have one threshold, so windows are looked at together: put one after the other, without the
    segments that would lie in two of them."""
    found = told(mixtral, text, samples=3)
    windows = np.unique(np.linspace(0, len(routed[0][0]) - 1, 3).round().astype(int))
    for layer, (chosen, _) in zip(found["layers"], routed, strict=True):
        best = 0.0
        for least in range(5):
            right = said = true = 0
            for w in windows:
                for start in range(29):
                    part = chosen[w, start : start + 4]
                    inside = {e for e in range(4) if (part == e).any(1).sum() >= least}
                    right += sum(len(inside & set(token)) for token in part.tolist())
                    said += 4 * len(inside)
                    true += 8
            best = max(best, 2 * right / (said + true))
        assert layer["srp"]["4"]["value"] == pytest.approx(best, abs=1e-5)
    one = told(mixtral, text, samples=1)
    assert one["layers"][0]["srp"]["16"]["value"] == pytest.approx(srp(routed[0][0][0].tolist(), 16, 4), abs=1e-5)


def test_rounds_of_any_size_add_up_to_the_same(mixtral: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, in rounds of two windows, and without weights held in memory."""
    whole = told(mixtral, text, similar=0)
    monkeypatch.setattr(tracing, "HELD", 512)
    assert told(mixtral, text, similar=0) == whole
    monkeypatch.setattr(tracing, "STREAMED", 800)
    monkeypatch.setattr("nett.core.device.free_memory", lambda: 0)
    assert told(mixtral, text, similar=0) == whole
    every = told(mixtral, text, similar=0, samples=10_000)
    assert every["layers"][0]["counts"] == whole["layers"][0]["counts"]


def test_a_stream_is_read_in_pieces(mixtral: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tokenizer's tokens end with lines, the windows are those of the whole; where they do not, about as many."""
    whole = told(mixtral, text, similar=0)
    monkeypatch.setattr("nett.core.windows._READ", 200)
    assert told(mixtral, text, similar=0)["tokens"] == pytest.approx(whole["tokens"], rel=0.02)

    def letters(words: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [ord(c) for c in words]}

    found = list(stream_windows(text, letters, length=7, vocabulary=256, batch=5))
    assert {len(f) for f in found[:-1]} == {5} and len(found[-1]) <= 5
    ids = [ord(c) for c in text.read_text()]
    assert np.concatenate(found).ravel().tolist() == ids[: len(ids) // 7 * 7]
    lines = text.with_suffix(".jsonl")
    lines.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
    assert told(mixtral, lines, similar=0)["tokens"] > 0
    lines.write_text('{"text": "sun"}\n{"word": 1}\n')
    with pytest.raises(Refused, match='not JSON with an entry "text"') as error:
        told(mixtral, lines)
    assert str(error.value.where).endswith(":2")


def test_planted_twins_are_the_most_alike(tmp_path: Path, mixtral: Path, text: Path) -> None:
    model, twins = upcycled(mixtral, tmp_path / "twice")
    found = told(model, text, similar=64)
    for layer, twin in zip(found["layers"], twins, strict=True):
        pairs = {(p["first"], p["second"]): p["cosine"] for p in layer["similar"]}
        alike = {pair for pair, cosine in pairs.items() if cosine > 0.999}
        assert alike == {(a, b) for a, b in enumerate(twin) if a < b}
        assert max(c for pair, c in pairs.items() if pair not in alike) < 0.9


def test_outputs_against_numpy(mixtral: Path, text: Path) -> None:
    """Mean cosines of the outputs of all experts, from the formula in float64 on the inputs that were sampled."""
    from nett.experts.gathering import gather
    from nett.experts.opening import opened
    from support.mixtures import tensors

    held = {n: t.double().numpy() for n, t in tensors(mixtral).items()}
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (2, 32)))
    with opened(str(mixtral)) as model:
        x = gather(model, ids, ["inputs"])[0]["inputs"].double().numpy()
        found = profiling.measured(model, [(0, ids)], 1, 32, 64).cosines[0]
    out = []
    for e in range(4):
        w1, w2, w3 = (held[f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight"] for w in ("w1", "w2", "w3"))
        gate = x @ w1.T
        y = (gate / (1 + np.exp(-gate)) * (x @ w3.T)) @ w2.T
        out.append(y / np.linalg.norm(y, axis=1, keepdims=True))
    assert found is not None and len(x) == 64
    sampled = slice(None, None, 64 // 16)  # the least that is looked at, since the text is short
    assert np.allclose(found, np.einsum("ath,bth->ab", *[np.stack(out)[:, sampled]] * 2) / 16, atol=1e-5)


def test_texts_are_told_apart(tmp_path: Path, mixtral: Path, text: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("0 1 2 3 4 5 6 7 8 9 " * 150)
    found = told(mixtral, f"words={text},digits={other}")
    assert [t["name"] for t in found["texts"]] == ["words", "digits"]
    layer, (pair,) = found["layers"][0], found["by_text"]["divergence"]
    rows = [np.array(layer["counts_by_text"][n]) for n in ("words", "digits")]
    assert np.array_equal(sum(rows), layer["counts"])
    each = [divergence(*(x["counts_by_text"][n] for n in ("words", "digits"))) for x in found["layers"]]
    assert pair["bits"] == pytest.approx(np.mean(each), abs=1e-5) and pair["bits"] > 0.01
    alone = told(mixtral, other)
    assert found["by_text"]["srp"]["digits"]["4"] == pytest.approx(alone["srp"]["4"]["value"], abs=1e-5)
    for home in found["by_text"]["at_home"]:
        counts = found["layers"][home["layer"]]["counts_by_text"]
        used = [counts[n][home["expert"]] / sum(counts[n]) for n in ("words", "digits")]
        assert home["share"] == pytest.approx(max(used) / sum(used), abs=1e-3) and home["share"] >= 0.8


def test_what_it_advises_is_what_it_measured(mixtral: Path, text: Path) -> None:
    found = told(mixtral, text, hits=0.75)
    said, caches = found["advice"], {c["experts"]: c for c in found["caches"]}
    assert said["ahead"] == 16 and list(caches) == [2, 3, 4]
    reached = min(size for size, c in caches.items() if c["hits"]["16"] >= 0.75)
    assert said["reaches"]["experts"] in (1, reached) and said["reaches"]["hits"] >= 0.75
    assert said["twice"]["experts"] == 4 and said["twice"]["hits"] == 1.0
    each = caches[3]
    assert each["bytes"] == 2 * 3 * (3 * 16 * 32 * 4)  # layers, experts, three matrices of float32
    weights = [sum(x["counts"]) for x in found["layers"]]
    assert each["hits"]["4"] == pytest.approx(
        np.average([x["hits"]["4"][2] for x in found["layers"]], weights=weights), abs=1e-4
    )
    assert said["pays"]["low"] <= said["pays"]["hits"] <= said["pays"]["high"]


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "granitemoe"])
def test_other_families(tmp_path: Path, text: Path, family: str) -> None:
    found = told(write_mixture(tmp_path / family, family), text, samples=8)
    assert all(sum(x["counts"]) == found["tokens"] * x["chosen"] for x in found["layers"])
    assert all(0 < x["srp"]["4"]["value"] <= 1 for x in found["layers"])


def test_command_writes_its_findings(tmp_path: Path, mixtral: Path, text: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    done = nett(
        "experts", "profile", str(mixtral), "--text", f"one={text}", "--text", f"two={copy}", "--length", "32",
        "--samples", "16", "--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html"),
    ).succeeded()  # fmt: skip
    assert "LRU" in done.out and "one and two: use of experts 0.000 bits apart" in done.out
    found = json.loads((tmp_path / "p.json").read_text())
    assert [t["name"] for t in found["texts"]] == ["one", "two"]
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") >= 8 and "Local routing consistency" in page


def test_bad_input(tmp_path: Path, mixtral: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="needs one"):
        profile([str(mixtral)])
    with pytest.raises(UsageError, match="no file"):
        profile([str(mixtral)], text="prose=nowhere.txt")
    with pytest.raises(Refused, match="holds no experts"):
        profile([str(write_llama(tmp_path / "dense"))], text=str(text))
    short = tmp_path / "short.txt"
    short.write_text("sun road")
    for samples in (0, 4):
        with pytest.raises(Refused, match="not one window"):
            told(mixtral, short, samples=samples)
    short.write_text(" \n")
    with pytest.raises(Refused, match="no text"):
        told(mixtral, short)
    assert any("as many as the model has positions" in n for n in told(mixtral, text, length=512)["notes"])


def test_intervals_and_measures_of_use() -> None:
    sums = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 0.0], [2.0, 5.0]])
    value, low, high = jackknife(sums, lambda s: s[:, 0] / s[:, 1])
    others = np.array([5 / 7, 3 / 7, 4 / 4])
    error = np.sqrt(2 / 3 * ((others - others.mean()) ** 2).sum())
    assert value == 6 / 9 and (high - low) / 2 == pytest.approx(4.302652729911275 * error)  # t of 2 degrees, 97.5 %
    assert jackknife(sums[:1], lambda s: s[:, 0]) == [1.0, 1.0, 1.0]
    assert balance([5, 5, 5, 5]) == {"effective": pytest.approx(4.0), "largest": 1.0, "spread": 0.0}
    assert (
        balance([8, 0])["effective"] == 1.0 and balance([8, 0])["spread"] == 1.0 and balance([0, 0])["largest"] == 0.0
    )
    assert divergence([1, 0], [0, 3]) == 1.0 and divergence([2, 2], [5, 5]) == 0.0
