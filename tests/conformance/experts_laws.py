"""Laws of the experts room (stated in nett.experts.protocol): what every method keeps, whatever it computes."""

from __future__ import annotations

import importlib
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from conformance import measure_laws, simulate_laws
from nett.core import receipt as receipts
from nett.core.cards import all_cards
from nett.core.checkpoint import open_checkpoint
from nett.core.registry import Card
from nett.core.staging import Staging
from nett.experts import engine
from nett.experts.layouts import FileLayer
from nett.experts.protocol import LAYERS, STATISTICS
from support import mixtures
from support.shared import made_once

Law = Callable[[Card, Path], None]


def laws(card: Card) -> list[Law]:
    if card.name == "simulate":
        return list(simulate_laws.LAWS)
    if card.name == "list":
        return [lists_every_method_the_same_way]
    if card.command or card.kind == "measure":
        return [same_answer_twice, looking_changes_nothing]
    if card.kind != "reduce":
        return list(getattr(importlib.import_module(card.module), "LAWS", []))
    found: list[Law] = [same_run_same_bytes, loads_as_it_was_judged]
    if card.identity is not None:
        found.append(identity)
    if "shelf" in card.operands:
        found.append(killed_in_training_and_resumed_to_the_same_bytes)
    if card.operands[0] == LAYERS:
        found += [one_layer_at_a_time, killed_and_resumed_to_the_same_bytes]
        if card.parameter("seed") is None:
            found.append(order_of_experts_is_irrelevant)
        if card.parameter("spread") is not None:
            found.append(layers_may_differ)
    return found


def lists_every_method_the_same_way(card: Card, folder: Path) -> None:
    """It takes no asset; two calls say the same, and whatever stands in the room is named."""
    first, second = (card.load()([], **card.resolve({"taxonomy": True})) for _ in range(2))
    assert first == second
    assert {c.name for c in all_cards() if c.room == "experts" and not c.hidden} == set(first["methods"])


# -- material ---------------------------------------------------------------------------------------------------


def model() -> Path:
    """A Mixtral of three layers with four experts each; made once for all laws."""

    def make(to: Path) -> str:
        return str(mixtures.write_mixture(to / "model", num_hidden_layers=3))

    return Path(made_once("experts-law-model", make))


def patterns() -> Path:
    """What nett experts premoe stores of it."""

    def make(to: Path) -> str:
        nett.experts.premoe(
            [str(model())], task=f"one={text(to)}", out=to / "patterns", length=24, samples=4, threads=1
        )
        return str(to / "patterns")

    return Path(made_once("experts-law-patterns", make))


def text(folder: Path) -> Path:
    words = ["sun", "road", "river", "letter", "house", "dust", "noon", "brother", "water", "air"]
    file = folder / "text.txt"
    file.write_text(" ".join(np.random.default_rng(0).choice(words, 3000)) + ".\n")
    return file


def quick(card: Card) -> dict[str, Any]:
    """Parameters with which a method takes a moment: what its file calls ``QUICK``."""
    return dict(getattr(importlib.import_module(card.module), "QUICK", {}))


def looks(card: Card) -> bool:
    """Whether it learns from a text."""
    return bool({*card.operands} & {*STATISTICS, "windows"})


def ran(card: Card, folder: Path, out: Path, source: Path | None = None, **more: Any) -> dict[str, Any]:
    """One run of the engine."""
    options: dict[str, Any] = {"out": out, "length": 32, "samples": 16, "threads": 1}
    judged = more.pop("judged", False)
    if looks(card) or judged:
        options["text"] = text(folder)
    given = quick(card) | more.pop("given", {})
    return engine.run(card, [str(source or model())], given, **(options | more))


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of an output but receipt and report, which hold times."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: blob for name, blob in found.items() if name not in (receipts.NAME, receipts.PAGE)}


def logits(folder: Path) -> Any:
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return nett.load(folder, as_model=True).float().eval()(ids).logits


def told(card: Card, folder: Path) -> Any:
    more = {"text": str(text(folder))} if card.parameter("text") and not card.parameter("query") else {}
    more |= {"task": f"one={text(folder)}"} if card.parameter("task") else {}
    more |= {"query": "sun and road"} if card.parameter("query") else {}
    small = {n: v for n, v in {"length": 24, "samples": 4, "threads": 1}.items() if card.parameter(n)}
    parameters = card.resolve(small | quick(card) | more)
    parameters |= {
        p.name: Path(v) for p in card.parameters if p.type == "path" and (v := parameters[p.name]) is not None
    }
    asset = patterns() if card.parameter("query") else model()
    said = card.load()([str(asset)], **parameters)
    return measure_laws.timeless({k: v for k, v in said.items() if k != "say"})  # where speeds may stand


# -- laws -------------------------------------------------------------------------------------------------------


def same_run_same_bytes(card: Card, folder: Path) -> None:
    for out in ("a", "b"):
        ran(card, folder, folder / out)
    assert weights(folder / "a") == weights(folder / "b")


def loads_as_it_was_judged(card: Card, folder: Path) -> None:
    """transformers loads what is written, with what nett's own walk gives, and everything the receipt says holds again."""
    from nett.core.blocks import Walk, open_skeleton

    receipt = ran(card, folder, folder / "out", judged=True)
    assert receipt["proof"] == "kept" and (folder / "out" / receipts.PAGE).is_file()
    assert all(c["ok"] for c in engine.verify(folder / "out", receipt))
    assert receipt["figures"]["judged"]["perplexity"] > 1
    ids = torch.arange(3, 40)[None]
    theirs = mixtures.logits_of(folder / "out", ids)
    with open_checkpoint(folder / "out") as checkpoint:
        for _, ours in Walk(open_skeleton(checkpoint), ids).through().logits():
            assert float((ours - theirs).abs().max()) < 1e-5
    if card.parameter("keep") is not None:
        assert receipt["figures"]["experts_after"] < receipt["figures"]["experts_before"]
        assert receipt["bytes_after"] < receipt["bytes_before"]


def identity(card: Card, folder: Path) -> None:
    """With the card's parameters every bit of every tensor comes back."""
    ran(card, folder, folder / "out", given=dict(card.identity or {}))
    before, after = mixtures.tensors(model()), mixtures.tensors(folder / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    said, was = (json.loads((f / "config.json").read_text()) for f in (folder / "out", model()))
    assert said == was


def order_of_experts_is_irrelevant(card: Card, folder: Path) -> None:
    """The same model with its experts in another order becomes the same function."""
    orders = [[2, 0, 3, 1], [1, 0, 3, 2], [3, 2, 1, 0]]
    other = mixtures.permuted(model(), folder / "other", orders)
    ran(card, folder, folder / "a")
    ran(card, folder, folder / "b", source=other)
    assert float((logits(folder / "a") - logits(folder / "b")).abs().max()) < 1e-4


def one_layer_at_a_time(card: Card, folder: Path) -> None:
    """When a layer's experts are read, nothing holds those of another."""
    alive: list[tuple[str, weakref.ref[Any]]] = []
    read = FileLayer.read

    def watched(self: FileLayer) -> Any:
        held = {name for name, ref in alive if ref() is not None}
        assert not held - {self.name}, f"{held} still in memory when {self.name} is read"
        made = read(self)
        alive.extend((self.name, weakref.ref(t)) for t in (made.gate, made.up, made.down))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileLayer, "read", watched)
        ran(card, folder, folder / "out")


def layers_may_differ(card: Card, folder: Path) -> None:
    """Spread over the model, as many experts stay; what nett.load gives is what was judged, and stock loaders refuse what
    their configs cannot say."""
    import transformers

    # A model whose first layer uses two of its experts and whose others use all, so that an even spread is not the best.
    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        rows = held["model.layers.0.block_sparse_moe.gate.weight"]
        rows[2:] = rows[:2] * torch.tensor([[0.1], [0.2]])

    skewed = mixtures.rewrite(model(), folder / "skewed", change)
    receipt = ran(card, folder, folder / "out", source=skewed, given={"spread": "global", "keep": 0.75})
    counts = receipt["figures"]["experts_by_layer"]
    assert sum(counts) <= 9 and min(counts) >= 2
    assert all(c["ok"] for c in engine.verify(folder / "out", receipt))
    config = json.loads((folder / "out" / "config.json").read_text())
    if len(set(counts)) == 1:
        assert "nett_expert_map" not in config
        return
    assert [m["experts"] for m in config["nett_expert_map"]] == counts
    assert bool(torch.isfinite(logits(folder / "out")).all())
    with pytest.raises((RuntimeError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(str(folder / "out"))


def killed_and_resumed_to_the_same_bytes(card: Card, folder: Path) -> None:
    """After the statistics and after each layer: what is left is taken up, to the result of a run that nothing disturbed."""
    ran(card, folder, folder / "whole")
    recorded = Staging.record
    for stop in (None, 0, 2) if looks(card) else (0, 2):
        out = folder / f"out{stop}"

        def record(self: Staging, stop: int | None = stop, **entry: Any) -> None:
            recorded(self, **entry)
            if entry.get("layer") == stop and (stop is not None or "statistics" in entry):
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Staging, "record", record)
            with pytest.raises(KeyboardInterrupt):
                ran(card, folder, out)
        assert not out.exists()
        ran(card, folder, out)
        assert weights(out) == weights(folder / "whole")


def killed_in_training_and_resumed_to_the_same_bytes(card: Card, folder: Path) -> None:
    """After each state that it lays down."""
    ran(card, folder, folder / "whole")
    recorded = Staging.record
    stops = []

    def counted(self: Staging, **entry: Any) -> None:
        recorded(self, **entry)
        stops.append("shelf" in entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staging, "record", counted)
        ran(card, folder, folder / "again")
    assert sum(stops) >= 3
    for stop in range(sum(stops)):
        out, seen = folder / f"out{stop}", []

        def record(self: Staging, stop: int = stop, seen: list[Any] = seen, **entry: Any) -> None:
            recorded(self, **entry)
            seen += [entry] if "shelf" in entry else []
            if len(seen) > stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Staging, "record", record)
            with pytest.raises(KeyboardInterrupt):
                ran(card, folder, out)
        assert not out.exists()
        ran(card, folder, out)
        assert weights(out) == weights(folder / "whole")


def same_answer_twice(card: Card, folder: Path) -> None:
    assert told(card, folder) == told(card, folder)


def looking_changes_nothing(card: Card, folder: Path) -> None:
    text(folder)
    made = [model(), *([patterns()] if card.parameter("query") else [])]
    files = sorted(f for where in (*made, folder) for f in where.rglob("*"))
    before = {f: f.read_bytes() for f in files if f.is_file()}
    told(card, folder)
    assert {f: f.read_bytes() for f in before} == before
    assert sorted(f for where in (*made, folder) for f in where.rglob("*")) == files
