"""Similar experts: planted twins are found whatever their order, with the error that plain NumPy gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.tiny import write_llama
from nett.scan import similar_experts as module
from nett.scan.similar_experts import matched, similar_experts
from support.mixtures import rewrite, tensors, upcycled, write_mixture
from support.scanning import parsed


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("similar") / "one")


@pytest.fixture(scope="module")
def twice(single: Path) -> tuple[Path, list[list[int]]]:
    return upcycled(single, single.parent / "two", noise=0.1)


def numbers(finding: Any) -> tuple[int, int, int]:
    """(layer, expert, the earlier one) of a finding."""
    edge = finding.edge
    layer, expert = (int(edge.target.split(".")[i]) for i in (-4, -1))
    return layer, expert, int(edge.sources[0].split(".")[-1])


def test_twins_are_found_with_their_distance(twice: tuple[Path, list[list[int]]], single: Path) -> None:
    path, twins = twice
    said = similar_experts([str(path)])
    found = {numbers(f): f for f in said.found}
    assert set(found) == {(layer, max(a, b), min(a, b)) for layer, twin in enumerate(twins) for a, b in enumerate(twin)}
    held = tensors(path)
    for (layer, expert, earlier), finding in found.items():
        stem = f"model.layers.{layer}.block_sparse_moe.experts"
        a, b = (
            {r: held[f"{stem}.{e}.{r}.weight"].double().numpy() for r in ("w1", "w2", "w3")} for e in (earlier, expert)
        )
        # For each neuron its nearest: the least that any order can give, and with so little noise it is one.
        gaps = sum(
            np.square(x[:, None] - y[None]).sum(-1)
            for x, y in ((a["w1"], b["w1"]), (a["w3"], b["w3"]), (a["w2"].T, b["w2"].T))
        )
        assert sorted(gaps.argmin(1)) == list(range(16))
        error = np.sqrt(gaps.min(1).sum() / sum(np.square(m).sum() for m in b.values()))
        assert finding.edge.error == pytest.approx(error, rel=1e-6) and 0.08 < error < 0.13
        assert finding.edge.bytes_freed == 3 * 16 * 32 * 4 == sum(p.bytes_freed for p in finding.parts)
    words = parsed(str(said.found[0].edge.command))
    assert (
        words.params["keep"] == "0.5"
        and words.params["alike"] == "weights"
        and "spread" not in str(words.params.get("spread"))
    )
    assert said.figures[str(path)]["similar"] == 8 and said.figures[str(path)]["closest"] > 0.99


def test_experts_that_differ_are_not_found(single: Path, twice: Any) -> None:
    assert similar_experts([str(single)]).found == ()
    assert similar_experts([str(twice[0])], similar=0.999).found == ()


def test_layers_that_differ_ask_for_a_spread(tmp_path: Path, single: Path) -> None:
    """One expert of the first layer is another's double: the command says how many stay in all, and spreads them."""

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        for role in ("w1", "w2", "w3"):
            stem = "model.layers.0.block_sparse_moe.experts"
            held[f"{stem}.2.{role}.weight"] = held[f"{stem}.0.{role}.weight"].clone()

    said = similar_experts([str(rewrite(single, tmp_path / "one", change))])
    (finding,) = said.found
    assert numbers(finding) == (0, 2, 0) and finding.edge.error == 0 and finding.edge.guarantee == "measured"
    words = parsed(str(finding.edge.command)).params
    assert (words["keep"], words["spread"]) == ("0.875", "global")


def test_all_experts_in_one_tensor(tmp_path: Path) -> None:
    path = write_mixture(tmp_path / "granite", "granitemoe", num_hidden_layers=1)
    stem = "model.layers.0.block_sparse_moe"
    order = np.random.default_rng(0).permutation(16)

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        both, down = held[f"{stem}.input_linear.weight"], held[f"{stem}.output_linear.weight"]
        both[3] = both[1][np.concatenate([order, 16 + order])]
        down[3] = down[1][:, order]

    (finding,) = similar_experts([str(rewrite(path, tmp_path / "twin", change))]).found
    assert finding.edge.sources[0].endswith("experts.1") and finding.edge.target.endswith("experts.3")
    assert finding.edge.error == pytest.approx(0, abs=1e-7) and finding.edge.bytes_freed == 3 * 16 * 32 * 4
    assert [p.target.split("::")[1] for p in finding.parts] == [
        f"{stem}.input_linear.weight",
        f"{stem}.output_linear.weight",
    ]


def test_many_neurons_are_matched_by_nearness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of assignment: the planted order where neurons are apart, and always a permutation."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(60, 32)).astype(np.float32)
    order = rng.permutation(60)
    monkeypatch.setattr(module, "_EXACT", 8)
    monkeypatch.setattr(module, "_BLOCK", 200)
    assert np.array_equal(matched(own, own[np.argsort(order)]), order)
    crowd = np.repeat(own[:5], 12, 0)
    assert sorted(matched(own, crowd)) == list(range(60))


def test_what_is_no_mixture_is_passed_over(tmp_path: Path, single: Path) -> None:
    dense = write_llama(tmp_path / "dense")
    assert similar_experts([str(dense)]) == similar_experts([str(dense)]).__class__((), {})
    strange = tmp_path / "strange"
    rewrite(single, strange, lambda held, config: held.pop("model.layers.0.block_sparse_moe.experts.1.w2.weight"))
    said = similar_experts([str(strange)])
    assert said.found == () and "lacks the down matrices of experts 1" in said.figures[str(strange)]["skipped"]
    config = json.loads((single / "config.json").read_text())
    assert config["num_local_experts"] == 4  # the fixture stays as it is
