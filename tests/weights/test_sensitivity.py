"""Costs of single parts against whole models put together by hand; the choice of bits against brute force."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core import torch_model
from nett.core.cards import find_card
from nett.core.errors import Refused, UsageError
from nett.core.windows import read_windows
from nett.weights import engine
from nett.weights.budget import choose, parse_budget


def test_a_cost_is_that_of_the_model_with_this_part_alone(llama: Path, other: Path, tmp_path: Path) -> None:
    told = nett.weights.sensitivity(
        [str(llama)], eval=other, bits="2,4", per="input", length=24, samples=4, threads=1, html=tmp_path / "page.html"
    )
    assert len(told["parts"]) == 12 and (tmp_path / "page.html").is_file()
    row = next(r for r in told["parts"] if r["block"] == 1 and r["part"] == "gate_proj+up_proj")
    original, changed = (
        transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval() for _ in range(2)
    )
    for name in ("gate_proj", "up_proj"):
        layer = changed.model.layers[1].mlp.get_submodule(name)
        layer.weight.data = nett.weights.rtn(layer.weight.data.bfloat16(), bits=2, group=32).dense().float()
    ids = read_windows(other, torch_model.tokenizer(llama), samples=4, length=24, vocabulary=64).ids
    with torch.no_grad():
        a, b = (m(torch.from_numpy(ids)).logits[:, :-1].double().log_softmax(-1) for m in (original, changed))
    expected = float((a.exp() * (a - b)).sum(-1).mean())
    assert row["bits"]["2"]["kl"]["mean"] == pytest.approx(expected, rel=1e-3)
    assert row["bits"]["2"]["flips"] == pytest.approx(float((a.argmax(-1) != b.argmax(-1)).double().mean()))
    assert row["bits"]["2"]["kl"]["mean"] > row["bits"]["4"]["kl"]["mean"] > 0


def test_the_choice_is_carried_out(llama: Path, text: Path, other: Path, tmp_path: Path) -> None:
    file = tmp_path / "bits.json"
    told = nett.weights.sensitivity(
        [str(llama)], eval=other, by="gptq", calibration=text, bits="2,3,4,8", length=24, samples=2, threads=1,
        budget="5.2bit", json=file,
    )  # fmt: skip
    assert json.loads(file.read_text())["layers"] == told["layers"]
    assert told["choice"]["bits_a_weight"] <= 5.2
    assert len({v["bits"] for v in told["layers"].values()}) > 1
    for i in range(3):  # what a loader fuses has one width
        assert len({told["layers"][f"model.layers.{i}.self_attn.{p}_proj"]["bits"] for p in "qkv"}) == 1
    receipt = engine.run(
        find_card("weights/gptq"), [str(llama)], {"group": 32}, out=tmp_path / "out", calibration=text, length=24,
        per_layer=file, threads=1,
    )  # fmt: skip
    assert receipt["figures"]["bits_a_weight"] == pytest.approx(told["choice"]["bits_a_weight"], abs=1e-3)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {g["weights"]["num_bits"] for g in said["config_groups"].values()} == {
        v["bits"] for v in told["layers"].values()
    }
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
def test_the_choice_is_the_best_one(seed: int, parts: int, widths: int) -> None:
    rng = np.random.default_rng(seed)
    names = [str(i) for i in range(widths)]
    costs = [dict(zip(names, map(float, rng.random(widths)), strict=True)) for _ in range(parts)]
    sizes = [dict(zip(names, map(int, rng.integers(1, 50, widths)), strict=True)) for _ in range(parts)]
    budget = int(rng.integers(1, 50 * parts))
    fitting = [
        sum(costs[i][n] for i, n in enumerate(one))
        for one in itertools.product(names, repeat=parts)
        if sum(sizes[i][n] for i, n in enumerate(one)) <= budget
    ]
    if not fitting:
        with pytest.raises(Refused, match="even the smallest settings"):
            choose(costs, sizes, budget)
        return
    choice = choose(costs, sizes, budget)
    assert choice.cost == pytest.approx(min(fitting), abs=1e-6)
    assert choice.bytes <= budget and choice.bound <= choice.cost + 1e-6


def test_budgets() -> None:
    assert (
        parse_budget("3.2bit", 1000) == 400 and parse_budget("3 bits", 8) == 3 and parse_budget("80MB", 1) == 80_000_000
    )
    for bad in ("much", "-3bit", "3.2 bytes a weight"):
        with pytest.raises(UsageError, match="neither bits a weight"):
            parse_budget(bad, 1000)


def test_bad_input(llama: Path, other: Path) -> None:
    with pytest.raises(UsageError, match="--eval"):
        nett.weights.sensitivity([str(llama)])
    with pytest.raises(UsageError, match="no method that takes bits"):
        nett.weights.sensitivity([str(llama)], eval=other, by="wanda")
    with pytest.raises(UsageError, match="cannot be tried on one part alone"):
        nett.weights.sensitivity([str(llama)], eval=other, by="awq")
    for bad in ("two", "0,4", "9"):
        with pytest.raises(UsageError, match="bits ="):
            nett.weights.sensitivity([str(llama)], eval=other, bits=bad)
    with pytest.raises(Refused, match="the budget is"):
        nett.weights.sensitivity([str(llama)], eval=other, bits="4,8", budget="1bit", length=24, samples=1, threads=1)
