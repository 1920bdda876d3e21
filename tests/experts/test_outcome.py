"""What answers become in files, with duplicates planted in a model: merged, it is the same function."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import nett
from nett.core.cards import find_card
from nett.core.errors import NettError, Refused
from nett.core.expert_modules import mixtures
from nett.core.registry import Card
from nett.experts import engine
from nett.experts.protocol import Kept, Layer, Merged
from support.mixtures import logits_of, rewrite, tensors, upcycled

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def twins(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    return upcycled(mixtral, tmp_path_factory.mktemp("twins") / "model", row_noise=0.3)


def run(answers: Any, model: Path, out: Path, **more: Any) -> dict[str, Any]:
    """The engine with a method of this test's own: ``answers(layers)``."""
    card = find_card("experts/random")

    def kernel(layers: Sequence[Layer], **parameters: Any) -> Iterator[Any]:
        return iter(answers(layers))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Card, "kernel", lambda self: kernel)
        return engine.run(dataclasses.replace(card), [str(model)], {"keep": 1.0}, out=out, threads=1, **more)


def pairs(twins: Sequence[Sequence[int]]) -> Any:
    """A method that knows the twins: of each pair the first stays and answers for both."""

    def answers(layers: Sequence[Layer]) -> Iterator[Any]:
        for layer, twin in zip(layers, twins, strict=True):
            leaders = [e for e in range(layer.count) if e < twin[e]]
            groups = [leaders.index(min(e, twin[e])) for e in range(layer.count)]
            yield lambda layer=layer, leaders=leaders, groups=groups: Merged(
                layer.read().take(leaders), groups, leaders
            )

    return answers


def test_a_map_is_exact(twins: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    """The router's rows differ between twins, and the remap adds up what both were given: the same logits."""
    model, known = twins
    receipt = run(pairs(known), model, tmp_path / "out", router="map")
    assert receipt["figures"]["experts_by_layer"] == [4, 4] and receipt["bytes_after"] < 0.75 * receipt["bytes_before"]
    made = nett.load(tmp_path / "out", as_model=True)
    with torch.no_grad():
        for kind in ("eager", "grouped_mm"):
            made.set_experts_implementation(kind)
            assert float((made(IDS).logits - logits_of(model, IDS)).abs().max()) < 1e-5
    mark = json.loads((tmp_path / "out" / "config.json").read_text())["nett_expert_map"]
    assert [len(m["map"]) for m in mark] == [8, 8] and [m["experts"] for m in mark] == [4, 4]
    assert all(c["ok"] for c in engine.verify(tmp_path / "out", receipt))
    with pytest.raises((RuntimeError, ValueError)):  # stock loaders refuse it
        logits_of(tmp_path / "out", IDS)
    with pytest.raises(Refused, match="merged before"):
        run(pairs(known), tmp_path / "out", tmp_path / "again")


def test_copies_are_exact_and_load_anywhere(twins: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    model, known = twins
    receipt = run(pairs(known), model, tmp_path / "out", router="copies")
    assert float((logits_of(tmp_path / "out", IDS) - logits_of(model, IDS)).abs().max()) < 1e-5
    assert receipt["figures"]["experts_by_layer"] == [8, 8]


def test_rows_load_anywhere_and_are_approximate(twins: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    """A token now chooses four of four: what is left of the choice is what the rows of the first twins say."""
    model, known = twins
    run(pairs(known), model, tmp_path / "out")
    held, config = tensors(tmp_path / "out"), json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_local_experts"] == 4 and "nett_expert_map" not in config
    leaders = [e for e in range(8) if e < known[0][e]]
    before = tensors(model)["model.layers.0.block_sparse_moe.gate.weight"]
    assert torch.equal(held["model.layers.0.block_sparse_moe.gate.weight"], before[leaders])
    assert float((logits_of(tmp_path / "out", IDS) - logits_of(model, IDS)).abs().max()) > 1e-4


def test_what_differs_by_layer_loads_with_nett(mixtral: Path, tmp_path: Path) -> None:
    """Layers of 2 and 3 experts give what transformers gives where the others are never chosen: their rows at -inf."""
    kept = [[1, 3], [0, 1, 2]]
    receipt = run(lambda layers: [Kept(k) for k in kept], mixtral, tmp_path / "out")
    assert any("nett.load" in note for note in receipt["notes"])
    made = nett.load(tmp_path / "out", as_model=True)
    whole = nett.load(mixtral, as_model=True)

    for mixture, stay in zip(mixtures(whole), kept, strict=True):
        gone = [e for e in range(4) if e not in stay]

        def forward(hidden: Any, router: Any = mixture.router, gone: Any = tuple(gone)) -> Any:
            logits = hidden.reshape(-1, hidden.shape[-1]) @ router.weight.T
            logits[:, list(gone)] = float("-inf")
            value, index = logits.softmax(-1).topk(router.top_k, dim=-1)
            return logits, value / value.sum(-1, keepdim=True), index

        mixture.router.forward = forward
    with torch.no_grad():
        assert float((made(IDS).logits - whole(IDS).logits).abs().max()) < 1e-5


def test_experts_may_become_narrower(mixtral: Path, tmp_path: Path) -> None:
    """Neurons that do nothing are left out: the same function, of a smaller width that the config says."""

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        for name, value in held.items():
            if name.endswith("w2.weight"):
                value[:, 12:] = 0

    idle = rewrite(mixtral, tmp_path / "idle", change)

    def answers(layers: Sequence[Layer]) -> Iterator[Merged]:
        for layer in layers:
            every = list(range(layer.count))
            yield Merged(layer.read().neurons(list(range(12))), every, every)

    run(answers, idle, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 12
    assert float((logits_of(tmp_path / "out", IDS) - logits_of(idle, IDS)).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Kept([2, 1]), NettError, "no proper answer"),
        (Kept([0, 9]), NettError, "no proper answer"),
        (Kept([3]), Refused, "1 experts would stay"),
    ],
)
def test_answers_that_are_none(answer: Any, error: Any, words: str, mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        run(lambda layers: [answer, answer], mixtral, tmp_path / "out")
    assert not (tmp_path / "out").exists()
