"""Laws of merges that see whole networks (stated in nett.merge.protocol): what holds whatever they compute."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.common_laws import bad_values
from conformance.merge_laws import digests_under
from nett.core.errors import NettError, UsageError
from nett.core.registry import Card
from nett.merge import engine
from nett.merge.whole import Whole
from support.symmetries import mlp, numbers
from support.tensors import Array, read_tensors, write_tensors

Law = Callable[[Card, Path], None]
WIDTHS = (6, 16, 12, 4)
CODE = """
from collections import OrderedDict
from torch import nn

def net():
    widths = {widths}
    layers = OrderedDict()
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        layers[str(i)] = nn.Linear(a, b)
        if i < len(widths) - 2:
            layers[f"relu{{i}}"] = nn.ReLU()
    return nn.Sequential(layers)
"""


def laws(card: Card) -> list[Law]:
    found = [
        same_call_same_bits,
        same_bits_under_any_hash_seed,
        float64_stays_float64,
        inputs_untouched,
        bad_parameters_on_arrays,
        other_shapes_and_names_are_refused,
        what_is_planned_is_what_lies_there,
        peak_memory_within_the_plan,
    ]
    return [*found, identity] if card.identity is not None else found


# -- material ---------------------------------------------------------------------------------------------------


def network(seed: int = 0) -> Any:
    """The MLP with random input and labels."""
    from nett.core.network import Network

    scope: dict[str, Any] = {}
    exec(CODE.format(widths=WIDTHS), scope)
    rng = np.random.default_rng(seed)
    return Network(scope["net"](), rng.normal(size=(40, WIDTHS[0])).astype(np.float32), rng.integers(0, WIDTHS[-1], 40))


def models_of(card: Card) -> int:
    """How many models the method takes: its own number, or three."""
    return 1 if "model" in card.operands else int(getattr(importlib.import_module(card.module), "MODELS", 3))


def operands(card: Card, models: list[dict[str, Array]]) -> list[Any]:
    given: list[Any] = [models[0] if "model" in card.operands else models[: models_of(card)], mlp(*WIDTHS)]
    if "network" in card.operands:
        given.append(network() if "network" in card.needs else None)
    return given


def called(card: Card, models: list[dict[str, Array]], **parameters: Any) -> Whole:
    found = card.load()(*operands(card, models), **parameters)
    assert isinstance(found, Whole)
    return found


def three(dtype: type = np.float32) -> list[dict[str, Array]]:
    return [numbers(mlp(*WIDTHS), seed, dtype) for seed in range(3)]


def digest(tensors: Mapping[str, Array]) -> str:
    return hashlib.sha256(b"".join(n.encode() + tensors[n].tobytes() for n in sorted(tensors))).hexdigest()


def folders(card: Card, folder: Path, dtype: str = "F32") -> tuple[list[str], dict[str, Any]]:
    """Written models and the options that go with them."""
    paths = []
    for i, model in enumerate(three()[: models_of(card)]):
        path = folder / f"m{i}" / "model.safetensors"
        write_tensors(path, model, dtype)
        paths.append(str(path.parent))
    code = folder / "net.py"
    code.write_text(CODE.format(widths=WIDTHS))
    options: dict[str, Any] = {"net": f"{code}:net", "input": f"2x{WIDTHS[0]}", "speak": False}
    if "network" in card.needs:
        made = network()
        np.savez(folder / "data.npz", x=made.inputs, y=made.labels)
        options["data"] = folder / "data.npz"
    return paths, options


# -- laws -------------------------------------------------------------------------------------------------------


def same_call_same_bits(card: Card, folder: Path) -> None:
    choices: list[dict[str, Any]] = [{}]
    for p in card.parameters:
        if p.type == "bool":
            choices += [{p.name: not p.default}]
    for parameters in choices:
        first, second = (called(card, three(), **parameters) for _ in range(2))
        assert digest(first.tensors) == digest(second.tensors)


def digests() -> dict[str, str]:
    """Card -> hash of what it makes of fixed networks; run in this process and in others."""
    from nett.core.cards import all_cards

    cards = [c for c in all_cards() if c.room == "merge" and "symmetry" in c.operands]
    return {c.key: digest(called(c, three()).tensors) for c in cards}


def same_bits_under_any_hash_seed(card: Card, folder: Path) -> None:
    assert digest(called(card, three()).tensors) == digests_under("4242", "whole_laws")[card.key]


def float64_stays_float64(card: Card, folder: Path) -> None:
    """The type stays, and so does the precision."""
    found = called(card, three(np.float64)).tensors
    assert all(t.dtype == np.float64 for t in found.values())
    assert any(np.any(t != t.astype(np.float32)) for t in found.values())


def inputs_untouched(card: Card, folder: Path) -> None:
    """Arrays: read-only ones do, their bytes stay, the result is memory of its own. Files: same bytes after."""
    models = three()
    before = [digest(m) for m in models]
    for model in models:
        for array in model.values():
            array.flags.writeable = False
    found = called(card, models)
    assert [digest(m) for m in models] == before
    assert not any(np.shares_memory(t, a) for t in found.tensors.values() for m in models for a in m.values())
    paths, options = folders(card, folder)
    files = sorted(f for f in folder.rglob("*.safetensors"))
    states = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    engine.run(card, paths, {}, out=folder / "out", **options)
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == states


def identity(card: Card, folder: Path) -> None:
    """One network under the card's ``identity`` parameters comes back bit for bit, from arrays and from files."""
    models = three()[:1]
    found = called(card, models, **dict(card.identity or {}))
    assert digest(found.tensors) == digest(models[0])
    for dtype in ("F32", "BF16"):
        paths, options = folders(card, folder / dtype, dtype)
        out = folder / dtype / "out"
        engine.run(card, paths[:1], dict(card.identity or {}), out=out, **options)
        assert digest(read_tensors(out)) == digest(read_tensors(Path(paths[0])))


def bad_parameters_on_arrays(card: Card, folder: Path) -> None:
    for parameter in card.parameters:
        for value in [*bad_values(parameter), *([[1.0, 1.0]] if parameter.many else [])]:
            with pytest.raises(UsageError, match=parameter.name):
                called(card, three(), **{parameter.name: value})
    with pytest.raises(UsageError, match="no_such_thing"):
        called(card, three(), no_such_thing=1)


def other_shapes_and_names_are_refused(card: Card, folder: Path) -> None:
    """A network that is not the symmetry's, on arrays; models that differ, from files, before the work."""
    model = three()[0]
    wrong = [model | {"1.bias": np.zeros(3, np.float32)}, {n: t for n, t in model.items() if n != "1.bias"}]
    for one in wrong:
        with pytest.raises(NettError, match=r"1\.bias"):
            called(card, [one, *three()[1:]])
    if "model" not in card.operands:
        paths, options = folders(card, folder)
        write_tensors(Path(paths[1]) / "model.safetensors", wrong[0])
        with pytest.raises(NettError, match=r"1\.bias"):
            engine.run(card, paths, {}, out=folder / "out", **options)
        assert not (folder / "out").exists()


def what_is_planned_is_what_lies_there(card: Card, folder: Path) -> None:
    """The receipt says what lies on the disk, to the byte; the dry run writes nothing and states a bound that holds."""
    paths, options = folders(card, folder)
    plan = engine.run(card, paths, {}, out=folder / "out", dry_run=True, **options)
    assert not (folder / "out").exists()
    receipt = engine.run(card, paths, {}, out=folder / "out", **options)
    on_disk = {f.name: len(f.read_bytes()) for f in (folder / "out").iterdir() if not f.name.startswith("nett.")}
    assert {o["path"]: o["bytes"] for o in receipt["outputs"]} == on_disk
    assert receipt["bytes_after"] == sum(on_disk.values())
    weights = sum(t.nbytes for t in read_tensors(folder / "out").values())
    assert weights <= plan["plan"]["bytes_written"]
    if not card.resizes:
        assert weights == plan["plan"]["bytes_written"]


def peak_memory_within_the_plan(card: Card, folder: Path) -> None:
    """A run in a process of its own holds no more than its plan says."""
    paths, options = folders(card, folder)
    line = [sys.executable, "-m", "nett", "merge", card.name, *paths, "--out", str(folder / "out"), "--no-speak"]
    line += ["--net", options["net"], "--input", options["input"]]
    line += ["--data", str(options["data"])] if "data" in options else []
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = engine.run(card, paths, {}, out=folder / "other", dry_run=True, **options)["plan"]
    receipt = json.loads((folder / "out" / "nett.json").read_text())
    assert 0 < receipt["peak_memory_bytes"] <= plan["peak_memory_bytes"]
