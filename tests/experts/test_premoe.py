"""PreMoe: scores against plain NumPy on transformers' own logits, stored patterns, queries, what is read, and switching."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.torch_model import quiet
from nett.experts.chosen import Chosen
from nett.experts.loader import Loaded, loader
from nett.experts.opening import opened
from nett.experts.patterns import NAME, patterns_of, read_patterns
from nett.experts.task_scores import Measure, first_inputs, task_scores
from support.cli import nett as command
from support.mixtures import FAMILIES, Paper, tensors, write_mixture
from support.shared import made_once

WORDS = {"one": ["sun", "road", "river", "letter"], "two": ["house", "dust", "noon", "brother"]}


def _written(to: Path) -> dict[str, str]:
    """A mixture, a text for each of two tasks, and the patterns of both."""
    model = write_mixture(to / "model", experts=8, num_hidden_layers=3, width=64)
    for name, words in WORDS.items():
        (to / f"{name}.txt").write_text(" ".join(np.random.default_rng(0).choice(words, 1500)))
    tasks = [f"{name}={to / name}.txt" for name in WORDS]
    nett.experts.premoe([str(model)], task=tasks, out=to / "patterns", samples=16, length=32, threads=1)
    return {"model": str(model), "patterns": str(to / "patterns"), "one": tasks[0], "two": tasks[1]}


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    return {k: Path(v) for k, v in made_once("experts-premoe", _written).items()}


def theirs(folder: Path, ids: Any) -> list[Any]:
    """Router logits [T, E] of each mixture, as transformers gives them."""
    import transformers

    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        return [t.double().numpy() for t in model(torch.as_tensor(ids), output_router_logits=True).router_logits]


def by_formula(logits: Any, top: int, threshold: float, *, probability: bool) -> Any:
    """Mean over tokens of what each gives to the experts with its ``top`` highest logits."""
    total = np.zeros(logits.shape[1])
    for token in logits:
        order = sorted(range(len(token)), key=lambda e: -token[e])[:top]
        shares = np.exp(token[order]) / np.exp(token[order]).sum()
        every = np.exp(token) / np.exp(token).sum()
        for expert, share in zip(order, shares, strict=True):
            if share >= threshold:
                total[expert] += every[expert] if probability else token[expert]
    return total / len(logits)


@pytest.mark.parametrize(("top", "score", "threshold"), [(1, "logit", 0.0), (0, "logit", 0.4), (3, "probability", 0.0)])
def test_scores_by_the_formula(made: dict[str, Path], top: int, score: Any, threshold: float) -> None:
    """Of two tasks of unequal size that go through the model together."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, 64, (n, 24)) for n in (70, 3)]  # the first fills more than one batch of the walk
    with opened(str(made["model"])) as model:
        found = task_scores(model, texts, Measure(top, score, threshold))
    for task, ids in enumerate(texts):
        for layer, logits in enumerate(theirs(made["model"], ids)):
            wanted = by_formula(logits, top or 2, threshold, probability=score == "probability")
            assert np.abs(found[layer][task].numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_first_router_of_each_family(family: str, tmp_path: Path) -> None:
    """What the first router is given is found without reading an expert of its mixture."""
    folder = write_mixture(tmp_path / "model", family)
    ids = np.arange(3, 40)[None]
    seen: list[Any] = []
    with opened(str(folder)) as model:
        layer = model.layers[0]
        experts, read = set(layer.place.experts), model.skeleton.checkpoint.read
        asked: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.skeleton.checkpoint), "read", lambda s, n, *a: (asked.append(n), read(n, *a))[1])
            hidden = first_inputs(model, ids)
        assert asked and not experts & set(asked)
        logits = hidden.double() @ layer.router().double().T
    import transformers

    from nett.core.expert_modules import mixtures

    with quiet(), torch.no_grad():
        whole = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        mixtures(whole)[0].router.register_forward_hook(lambda m, a, out: seen.append(out[0].double()))
        whole(torch.as_tensor(ids))
    assert float((logits - seen[0]).abs().max()) < 1e-4


def test_patterns_by_hand() -> None:
    """Task b wants experts 3 and 0; a query is as far as its numbers say; pools keep equally many."""
    scores = [np.array([[4.0, 3, 2, 1], [2, 0, 1, 5]])]
    stored = patterns_of(["a", "b"], scores, Measure(), 0.5, "model")
    assert stored.kept("a", [Paper(4)]) == [[0, 1]] and stored.kept("b", [Paper(4)]) == [[0, 3]]
    assert stored.kept("b", [Paper(4)], 0.75) == [[0, 2, 3]]
    assert stored.kept("a", [Paper(4, pools=2, chosen=1)], 1.0) == [[0, 1, 2, 3]]
    assert list(stored.distances([4, 3, 2, 0])) == ["a", "b"]
    assert stored.distances([2, 0, 1, 5]) == {"b": 0.0, "a": pytest.approx(np.sqrt(4 + 9 + 1 + 16))}
    with pytest.raises(UsageError, match="no stored task is called 'c'"):
        stored.kept("c", [Paper(4)])


def test_a_task_is_a_checkpoint(made: dict[str, Path], tmp_path: Path) -> None:
    """DIR/TASK opens anywhere: as a model, and written out as the pruned model that it is."""
    stored = read_patterns(made["patterns"])
    with opened(str(made["model"])) as found:
        kept = stored.kept("two", found.layers)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = nett.load(made["patterns"] / "two", as_model=True).eval()(ids).logits
    out = tmp_path / "out"
    command("convert", str(made["patterns"] / "two"), str(out)).succeeded()
    held, whole = tensors(out), tensors(made["model"])
    for layer, experts in enumerate(kept):
        stem = f"model.layers.{layer}.block_sparse_moe"
        assert torch.equal(held[f"{stem}.gate.weight"], whole[f"{stem}.gate.weight"][experts])
        for new, old in enumerate(experts):
            assert torch.equal(held[f"{stem}.experts.{new}.w2.weight"], whole[f"{stem}.experts.{old}.w2.weight"])
    import transformers

    with quiet(), torch.no_grad():
        stock = transformers.AutoModelForCausalLM.from_pretrained(str(out)).eval()
        assert torch.equal(stock(ids).logits, ours)
    with pytest.raises(Refused, match="holds the patterns of tasks"):
        nett.load(made["patterns"], as_model=True)
    with pytest.raises(UsageError, match="no stored task is called 'three'"):
        nett.load(made["patterns"] / "three", as_model=True)


def test_reads_no_more_than_it_must(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where the system is asked: the chosen experts and 5 %, beside what all tasks share; and at a switch only
    the experts that were not there."""
    asked: list[int] = []
    really = os.preadv

    def counted(fd: int, buffers: Any, offset: int) -> int:
        got = really(fd, buffers, offset)
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".safetensors"):
            asked.append(got)
        return got

    monkeypatch.setattr(os, "preadv", counted)
    with loader(made["patterns"], task="one") as loaded:
        chosen = sum(4 * 3 * layer.width * layer.hidden * 4 for layer in loaded.layers)
        dense = loaded.checkpoint.nbytes - 2 * chosen
        assert chosen <= loaded.bytes_read["experts"] <= 1.05 * chosen
        assert sum(asked) <= 1.05 * chosen + dense
        before, first = loaded.bytes_read, list(map(set, loaded.held))
        del asked[:]
        loaded.switch(task="two")
        new = sum(len(set(b) - a) for a, b in zip(first, loaded.held, strict=True))
        assert 0 < new < 12
        assert loaded.bytes_read["experts"] - before["experts"] == new * chosen // 12
        assert sum(asked) == new * (chosen // 12 + 32 * 4)  # and a row of the router each
        del asked[:]
        loaded.switch(task="two")
        assert not asked


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3", "granitemoe"])
def test_switching_gives_the_other_model(family: str, tmp_path: Path) -> None:
    """After each switch the model computes what one that is loaded afresh does."""
    more = {"n_group": 2, "topk_group": 1} if family == "deepseek_v3" else {}
    folder = write_mixture(tmp_path / "model", family, experts=8, **more)
    rng, ids = np.random.default_rng(3), torch.arange(3, 40)[None]
    with opened(str(folder)) as found:
        scores = [rng.normal(size=(2, layer.count)) for layer in found.layers]
    stored = patterns_of(["a", "b"], scores, Measure(), 0.5, str(folder))
    with Loaded(stored, "a", str(folder)) as loaded, torch.no_grad():
        for task in ("b", "a"):
            loaded.switch(task=task)
            with opened(str(folder)) as found:
                few = Chosen(found.skeleton.checkpoint, stored.kept(task, found.layers), found.layers)
                fresh = nett.core.torch_model.model(few).eval()(ids).logits
            assert float((loaded.model(ids).logits - fresh).abs().max()) < 1e-5
            assert [sorted(h) for h in loaded.held] == stored.kept(task, loaded.layers)


def test_queries_find_their_task(made: dict[str, Path], tmp_path: Path) -> None:
    """Whether the model is in memory or not, with whichever experts."""
    for name, words in WORDS.items():
        query = " ".join(np.random.default_rng(9).choice(words, 40))
        with loader(made["patterns"], query=query) as loaded:
            assert loaded.task == name
            near = loaded.distances(query)
            loaded.switch(task="two" if name == "one" else "one")
            assert loaded.distances(query) == pytest.approx(near)
            assert loaded.switch(query=query) == name
        told = nett.experts.retrieve([str(made["patterns"])], query=query)
        assert told["task"] == name and told["distances"] == pytest.approx(near, rel=1e-4)
    (tmp_path / "q.txt").write_text("sun road river")
    said = command("experts", "retrieve", str(made["patterns"]), "--text", str(tmp_path / "q.txt")).succeeded().out
    assert "one" in said and "nett.load(" in said


def test_command_and_receipt(made: dict[str, Path], tmp_path: Path) -> None:
    """The same bytes again from the command line; the receipt holds what each task costs, and verify finds a change."""
    out, tasks = tmp_path / "out", [w for name in WORDS for w in ("--task", str(made[name]))]
    options = ("--samples", "16", "--length", "32", "--out", str(out))
    command("experts", "premoe", str(made["model"]), *tasks, *options).succeeded()
    assert (out / NAME).read_bytes() == (made["patterns"] / NAME).read_bytes()
    receipt = json.loads((out / "nett.json").read_text())
    assert set(receipt["figures"]["tasks"]) == set(WORDS) and receipt["figures"]["experts"]["of_a_task"] == 12
    for said in receipt["figures"]["tasks"].values():
        assert said["perplexity"] > 1 and said["kl"]["mean"] > 0
    command("verify", str(out)).succeeded()
    (out / NAME).write_text((out / NAME).read_text().replace('"keep":0.5', '"keep":0.9'))
    command("verify", str(out)).failed(4, NAME)


def test_refusals(made: dict[str, Path], mixtral: Path, tmp_path: Path) -> None:
    model, text = str(made["model"]), str(made["one"]).partition("=")[2]
    for task, what in (
        ([text], "is not NAME=FILE"),
        ([f"a/b={text}"], "is not NAME=FILE"),
        ([f"a={text}", f"a={text}"], "given twice"),
        (["a=missing.txt"], "no such text file"),
    ):
        with pytest.raises(UsageError, match=what):
            nett.experts.premoe([model], task=task, out=tmp_path / "out")
    with pytest.raises(Refused, match=r"keep = 0\.1 leaves 1 of 8"):
        nett.experts.premoe([model], task=f"a={text}", keep=0.1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refused, match="holds no task patterns"):
        loader(mixtral, task="one")
    with pytest.raises(UsageError, match="takes a task or a query"):
        loader(made["patterns"])
    with pytest.raises(UsageError, match="query is empty"):
        loader(made["patterns"], query="")
    with pytest.raises(Refused, match=r"mixtures of \[4, 4\] experts, the task patterns are of \[8, 8, 8\]"):
        loader(made["patterns"], task="one", model=mixtral)
    broken = tmp_path / "broken"
    broken.mkdir()
    said = json.loads((made["patterns"] / NAME).read_text())
    said["orders"][1][0][0] = said["orders"][1][0][1]
    (broken / NAME).write_text(json.dumps(said))
    with pytest.raises(ProofFailed, match="are no task patterns"):
        loader(broken, task="one")
