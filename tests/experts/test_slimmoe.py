"""SlimMoE: scores against NumPy and finite differences, cuts against masks, stages, and a small mixture slimmed and distilled."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nett.core import torch_model
from nett.core.cards import find_card
from nett.core.errors import Refused
from nett.core.expert_modules import mixtures
from nett.core.shelf import NoShelf, StagedShelf
from nett.core.staging import staged
from nett.experts import engine, neurons, slimmoe
from nett.experts.slimming import Settings, stage_steps, stage_widths
from support.mixtures import FAMILIES, logits_of, write_mixture

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def model(mixtral: Path) -> Any:
    return torch_model.model(mixtral).float().eval()


def settings(**given: Any) -> Settings:
    usual = {"width": 0.5, "stages": 2, "steps": 0, "by": "distil", "top": 8, "sample": 4, "lr": 1e-3}
    return Settings(**(usual | {"batch": 2, "multiple": 4, "every": 2, "seed": 0} | given))


def windows(count: int = 8, length: int = 24, seed: int = 0) -> torch.Tensor:
    """A Markov chain of 61 tokens with two ways on from each."""
    rng = np.random.default_rng(seed)
    rows = np.empty((count, length), np.int64)
    rows[:, 0] = rng.integers(3, 64, count)
    for at in range(1, length):
        rows[:, at] = 3 + (rows[:, at - 1] * 7 + 11 * rng.integers(0, 2, count)) % 61
    return torch.from_numpy(rows)


def slim(model: Any, **given: Any) -> Any:
    quick = {"batch": 2, "sample": 4, "multiple": 4, "steps": 0}
    return slimmoe(deepcopy(model), windows(), NoShelf(), **(quick | given))


def test_stages() -> None:
    """256 to 64 in two cuts of a half, or three; multiples; no cut that cuts nothing; every step is in a stage."""
    assert stage_widths(256, settings(width=0.25)) == [128, 64]
    assert stage_widths(256, settings(width=0.25, stages=3)) == [160, 100, 64]
    assert stage_widths(256, settings(width=0.25, stages=3, multiple=64)) == [192, 128, 64]
    assert stage_widths(16, settings(width=0.9, multiple=8)) == []
    assert stage_widths(16, settings(width=1.0)) == []
    assert stage_steps(10, 3) == [3, 3, 4] and stage_steps(0, 2) == [0, 0]


def test_losses_against_numpy() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 5, 20)), rng.normal(size=(2, 5, 20))

    def soft(x: Any) -> Any:
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    total = 0.0
    for a, b in zip(ours.reshape(-1, 20), theirs.reshape(-1, 20), strict=True):
        best = np.argsort(-b)[:8]
        total -= float((soft(b[best]) * np.log(soft(a)[best])).sum())
    made = neurons.distil_loss(torch.from_numpy(ours), torch.from_numpy(theirs), 8)
    assert float(made) == pytest.approx(total / 10)
    full = (soft(theirs) * np.log(soft(theirs) / soft(ours))).sum(-1).mean()
    assert float(neurons.kl(torch.from_numpy(ours), torch.from_numpy(theirs))) == pytest.approx(full)


def test_scores_against_finite_differences(model: Any) -> None:
    """Of one neuron in float64: |w dL/dw| summed over its rows of gate and up and its column of down."""
    one = deepcopy(model).double()
    one.set_experts_implementation("eager")
    teacher = one(IDS).logits.detach() + torch.linspace(0, 3, 64, dtype=torch.float64)
    neurons.distil_loss(one(IDS).logits, teacher, 8).backward()
    mixture = mixtures(one)[1]
    found = neurons.felt(mixture)
    busy = int(found.sum(1).argmax())
    total = 0.0
    both, down = mixture.experts.gate_up_proj.data, mixture.experts.down_proj.data
    for entries in (both[busy, 3], both[busy, 3 + 16], down[busy, :, 3]):
        for i in range(len(entries)):
            held, step = float(entries[i]), 1e-2
            values = []
            for sign in (1, -1):
                entries[i] = held + sign * step
                with torch.no_grad():
                    values.append(float(neurons.distil_loss(one(IDS).logits, teacher, 8)))
            entries[i] = held
            total += abs(held * (values[0] - values[1]) / (2 * step))
    assert total > 1e-6 and float(found[busy, 3]) == pytest.approx(total, rel=1e-4)


def test_the_highest_stay() -> None:
    scores = torch.tensor([[3.0, 1, 2, 5], [0, 0, 0, 0]]).double()
    sizes = torch.tensor([[1.0, 1, 1, 1], [1, 4, 2, 4]]).double()
    assert neurons.kept(scores, sizes, 2).tolist() == [[0, 3], [1, 3]]
    assert neurons.kept(scores, sizes, 3).tolist() == [[0, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("by", ["distil", "text", "magnitude", "chance"])
def test_what_is_cut_is_what_is_masked(by: str, model: Any) -> None:
    """A model whose other neurons are zeroed gives the same logits as the one that is cut, which is the original's slices."""
    small = slim(model, by=by, stages=1).model
    masked = deepcopy(model)
    for old, new in zip(mixtures(masked), mixtures(small), strict=True):
        down, left = old.experts.down_proj.data, new.experts.down_proj.data
        assert left.shape[-1] == 8
        for e in range(4):
            stays = (down[e][:, :, None] == left[e][:, None, :]).all(0).any(1)
            assert int(stays.sum()) == 8
            down[e][:, ~stays] = 0
            rows = torch.cat([stays, stays])
            assert torch.equal(new.experts.gate_up_proj.data[e], old.experts.gate_up_proj.data[e][rows])
    with torch.no_grad():
        assert float((small(IDS).logits - masked(IDS).logits).abs().max()) < 1e-5
    assert small.config.intermediate_size == 8


def test_idle_neurons_go_first(model: Any) -> None:
    """Half of the neurons do nothing: by the loss they feel, exactly they are cut, and the logits stay."""
    idle = deepcopy(model)
    rng = np.random.default_rng(0)
    for mixture in mixtures(idle):
        for e in range(4):
            mixture.experts.down_proj.data[e][:, rng.permutation(16)[:8]] *= 1e-6
    for by in ("distil", "text"):
        small = slim(idle, by=by, sample=8).model
        with torch.no_grad():
            assert float((small(IDS).logits - idle(IDS).logits).abs().max()) < 1e-3


def test_stages_distil(model: Any) -> None:
    """Each stage ends nearer to the teacher than it starts; the same seed gives the same bits, another not."""
    made = slim(model, width=0.25, steps=120, lr=1e-2)
    starts, ends = (made.figures[f"kl at the {at} of each stage"] for at in ("start", "end"))
    assert made.figures["widths"] == [8, 4] and made.figures["steps"] == [60, 60]
    assert all(end < 0.9 * start for start, end in zip(starts, ends, strict=True))
    one, same, other = (mixtures(slim(model, steps=4, seed=seed).model)[0].experts.down_proj for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("mixtral", "deepseek_v3")])
def test_families_load_where_they_came_from(family: str, tmp_path: Path) -> None:
    """Stock transformers loads what is written with the width that its config says: cut by size, as slices of the file's."""
    source = write_mixture(tmp_path / "model", family)
    given = {"by": "magnitude", "steps": 0, "stages": 1, "batch": 2}
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["sun", "road", "river", "letter", "house"], 3000)))
    out = tmp_path / "out"
    engine.run(find_card("experts/slimmoe"), [str(source)], given, out=out, text=text, length=32, samples=16, threads=1)
    small = slim(torch_model.model(source).float().eval(), by="magnitude", stages=1, multiple=8).model
    with torch.no_grad():
        assert float((logits_of(out, IDS) - small(IDS).logits).abs().max()) < 1e-5
    said, was = (json.loads((f / "config.json").read_text()) for f in (out, source))
    assert {k: v for k, v in said.items() if was[k] != v} == {
        "intermediate_size" if "moe_intermediate_size" not in was else "moe_intermediate_size": 8
    }


def test_refusals(tmp_path: Path, model: Any) -> None:
    shared = torch_model.model(write_mixture(tmp_path / "shared", "deepseek_v3")).float().eval()
    with pytest.raises(Refused, match="shared experts in one number"):
        slim(shared)
    with pytest.raises(Refused, match="makes 8 windows, and one training step takes 9"):
        slim(model, batch=9)
    nothing = slim(model, width=0.9, multiple=8)
    assert "nothing was cut" in nothing.notes[0] and nothing.figures["width after"] == 16


def test_a_shelf_keeps_the_last_state(tmp_path: Path) -> None:
    from nett.core.errors import NettError

    with staged(tmp_path / "out", "key") as staging:
        shelf = StagedShelf(staging)
        assert shelf.take() is None
        for value in (1.0, 2.0):
            shelf.lay({"a": torch.full((2,), value), "step": torch.tensor(value)}, {"at": value})
    with staged(tmp_path / "out", "key") as staging:
        again = StagedShelf(staging)
        tensors, about = again.take() or ({}, {})
        assert about == {"at": 2.0} and tensors["a"].tolist() == [2, 2] and tensors["step"].shape == ()
        files = list((staging.path / "parts").iterdir())
        assert len(files) == 1
        files[0].write_bytes(b"other")
        with pytest.raises(NettError, match="journal"):
            again.take()
        again.clear()
        assert not list((staging.path / "parts").iterdir())
