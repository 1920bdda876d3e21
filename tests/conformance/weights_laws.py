"""Laws of the weights room (stated in nett.weights.protocol): what every method keeps, whatever it computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from conformance import measure_laws
from nett.core import receipt as receipts
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.moments import NAMES, Moments
from nett.core.registry import Card
from nett.core.staging import Staging
from nett.core.tiny import write_llama
from nett.weights import engine
from nett.weights.protocol import Factors, Quantised, Scaled
from support.shared import made_once

Law = Callable[[Card, Path], None]


def laws(card: Card) -> list[Law]:
    if card.command or card.kind == "measure":
        return [same_answer_twice, looking_changes_nothing]
    if card.kind == "train":
        return list(importlib.import_module("conformance.train_laws").LAWS)
    if card.operands and card.operands[0] == "model":
        return [same_run_same_bytes, loads_as_it_was_measured]
    found: list[Law] = [
        same_call_same_bits,
        inputs_untouched,
        no_input_at_all,
        loads_as_it_was_measured,
        killed_and_resumed_to_the_same_bytes,
    ]
    if card.identity is not None:
        found.append(identity)
    if card.parameter("bits"):
        found.append(bits_are_kept)
    if "source" in card.operands:
        found.append(scales_can_be_folded)
    return found


# -- material ---------------------------------------------------------------------------------------------------


def operands(card: Card, *, dead: bool = False, seed: int = 0) -> list[Any]:
    """A matrix [12, 64] and what the kernel wants to know of its inputs; ``dead``: half of them are always zero."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.normal(size=(12, 64)).astype(np.float32))
    inputs = torch.from_numpy(rng.normal(size=(200, 64)).astype(np.float32) * np.linspace(0.1, 3, 64, dtype=np.float32))
    if dead:
        inputs[:, ::2] = 0
    moments = Moments(64, NAMES)
    moments.add(inputs)
    known = {
        "weight": weight,
        "weights": [weight, weight.flip(0)[:5].clone()],
        "bias": torch.arange(12.0),
        "compressed": (weight * 4).round() / 4,
        "source": torch.arange(64) // 2,  # two inputs follow each entry before, as with grouped heads
    }
    return [known[name] if name in known else moments[name] for name in card.operands]


def numbers(answer: Any) -> list[torch.Tensor]:
    """All tensors of an answer."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    if isinstance(answer, Quantised | Factors):
        return [v for v in vars(answer).values() if isinstance(v, torch.Tensor)]
    if isinstance(answer, Mapping):
        return [t for v in answer.values() for t in numbers(v)]
    if isinstance(answer, list | tuple):
        return [t for v in answer for t in numbers(v)]
    return [t for v in vars(answer).values() for t in numbers(v)] if hasattr(answer, "__dict__") else []


def quick(card: Card) -> dict[str, Any]:
    """Parameters with which a method takes a moment: what its file calls ``QUICK``, and few looks at the text."""
    few = {"evaluations": 6} if card.parameter("evaluations") else {}
    return few | dict(getattr(importlib.import_module(card.module), "QUICK", {}))


def text(folder: Path) -> Path:
    words = ["sun", "road", "river", "letter", "house", "dust", "noon", "brother", "water", "air"]
    rng = np.random.default_rng(0)
    file = folder / "text.txt"
    file.write_text(" ".join(rng.choice(words, 3000)) + ".\n")
    return file


def model() -> Path:
    """Three layers; made once for all laws."""
    sizes: dict[str, Any] = {"layers": 3, "hidden": 64, "inter": 96, "dtype": "F32"}
    return Path(made_once("weights-law-model", lambda to: str(write_llama(to / "model", **sizes))))


def rounded() -> Path:
    """The same with its weights on a grid, saved as floats: what a method that keeps every bit makes smaller."""

    def make(to: Path) -> str:
        made = to / "rounded"
        engine.run(find_card("weights/rtn"), [str(model())], {"bits": 8}, out=made, format="dense", threads=1)
        return str(made)

    return Path(made_once("weights-law-rounded", make))


def ran(card: Card, folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    """One run of the engine on a Llama of some kilobytes."""
    assets = [str(rounded() if card.guarantee == "exact" else model())]
    if "compressed" in card.operands:
        made = folder / "compressed"
        if not made.exists():
            engine.run(find_card("weights/rtn"), assets, {"bits": 3}, out=made, threads=1)
        assets.append(str(made))
    options: dict[str, Any] = {"out": out, "eval": None, "length": 32, "samples": 24, "threads": 1}
    if {*card.operands} & {*NAMES, "windows"}:
        options["calibration"] = text(folder)
    return engine.run(card, assets, quick(card), **(options | more))


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of an output but receipt and report, which hold times."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: blob for name, blob in found.items() if name not in (receipts.NAME, receipts.PAGE)}


def told(card: Card, folder: Path) -> Any:
    """What a command that takes the user's paths says, without times."""
    eval = card.parameter("eval")
    more = {"eval": text(folder) if eval.default is None else str(text(folder))} if eval else {}
    small = {n: v for n, v in {"length": 24, "samples": 2, "threads": 1, "by": "rtn"}.items() if card.parameter(n)}
    parameters = card.resolve(small | quick(card)) | more
    return measure_laws.timeless(card.load()([str(model())], **parameters))


# -- laws -------------------------------------------------------------------------------------------------------


def same_call_same_bits(card: Card, folder: Path) -> None:
    first, second = (numbers(card.load()(*operands(card), **quick(card))) for _ in range(2))
    assert first and len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def inputs_untouched(card: Card, folder: Path) -> None:
    given = operands(card)
    before = [t.clone() for t in numbers(given)]
    card.load()(*given, **quick(card))
    assert all(torch.equal(a, b) for a, b in zip(before, numbers(given), strict=True))


def no_input_at_all(card: Card, folder: Path) -> None:
    """Columns whose inputs were always zero do no harm: the answer is finite."""
    for tensor in numbers(card.load()(*operands(card, dead=True), **quick(card))):
        assert bool(torch.isfinite(tensor.float()).all())


def identity(card: Card, folder: Path) -> None:
    given = operands(card)
    answer = card.load()(*given, **card.identity)
    answers, weights = (answer, given[0]) if isinstance(answer, list) else ([answer], [given[0]])
    for one, weight in zip(answers, weights, strict=True):
        assert torch.equal(one if isinstance(one, torch.Tensor) else one.dense(), weight)


def scales_can_be_folded(card: Card, folder: Path) -> None:
    """A scale is positive and one for all inputs that follow one entry; without such entries nothing is scaled."""
    given = operands(card)
    for dead in (False, True):
        answer = card.load()(*operands(card, dead=dead), **quick(card))
        if isinstance(answer, Scaled):
            assert answer.scale.shape == (64,) and bool((answer.scale > 0).all())
            assert torch.equal(answer.scale[::2], answer.scale[1::2])
    given[card.operands.index("source")] = None
    assert not isinstance(card.load()(*given, **quick(card)), Scaled)


def bits_are_kept(card: Card, folder: Path) -> None:
    """What lies on disk is what was asked for, one bit more at most, and a scale of 32 bits for each 32 columns."""
    receipt = ran(card, folder, folder / "out", format="compressed-tensors")
    bits = int(card.resolve(quick(card))["bits"])
    assert bits <= receipt["figures"]["bits_a_weight"] <= bits + 2.2


def same_answer_twice(card: Card, folder: Path) -> None:
    assert told(card, folder) == told(card, folder)


def looking_changes_nothing(card: Card, folder: Path) -> None:
    text(folder)
    files = [*sorted(model().rglob("*")), *sorted(folder.rglob("*"))]
    before = {f: f.read_bytes() for f in files if f.is_file()}
    told(card, folder)
    assert {f: f.read_bytes() for f in before} == before
    assert [*sorted(model().rglob("*")), *sorted(folder.rglob("*"))] == files


def same_run_same_bytes(card: Card, folder: Path) -> None:
    for out in ("a", "b"):
        ran(card, folder, folder / out)
    assert weights(folder / "a") == weights(folder / "b")


def loads_as_it_was_measured(card: Card, folder: Path) -> None:
    """transformers gives what nett's own reading gives, and everything that the receipt says holds again."""
    receipt = ran(card, folder, folder / "out")
    assert receipt["proof"] == "kept" and (folder / "out" / receipts.PAGE).is_file()
    assert all(c["ok"] for c in engine.verify(folder / "out", receipt))
    judged = receipt["figures"].get("judged")
    if {*card.operands} & {*NAMES, "windows"}:
        assert judged["kl"]["mean"] >= 0 and judged["perplexity"] > 1
    if (folder / "out" / "adapter_config.json").is_file():
        return
    pytest.importorskip("compressed_tensors")
    from nett.core import torch_model
    from nett.core.blocks import Walk, open_skeleton

    ids = torch.arange(3, 40)[None]
    plain = folder / "out"
    if not [*plain.glob("*.safetensors")]:  # nett's own container: what others load is written of it
        plain = folder / "plain"
        nett.convert(folder / "out", plain)
    theirs = torch_model.model(plain).eval()
    with open_checkpoint(folder / "out", dense=True) as checkpoint, torch.no_grad():
        for _, ours in Walk(open_skeleton(checkpoint), ids).through().logits():
            assert float((ours - theirs(ids).logits).abs().max()) < 1e-3


def killed_and_resumed_to_the_same_bytes(card: Card, folder: Path) -> None:
    """After each block: what is left is taken up, and the result is that of a run that nothing disturbed."""
    ran(card, folder, folder / "whole")
    recorded = Staging.record
    for stop in range(3):
        out = folder / f"out{stop}"

        def record(self: Staging, stop: int = stop, **entry: Any) -> None:
            recorded(self, **entry)
            if entry.get("block") == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Staging, "record", record)
            with pytest.raises(KeyboardInterrupt):
                ran(card, folder, out)
        assert not out.exists()
        ran(card, folder, out)
        assert weights(out) == weights(folder / "whole")
