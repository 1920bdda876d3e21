"""Unused experts: by biases, exactly; on a text, as transformers routes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nett.core import torch_model
from nett.core.windows import read_windows
from nett.scan.unused_experts import outvoted, unused_experts
from support.mixtures import Paper, logits_of, rewrite, tensors, write_mixture
from support.scanning import parsed


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("unused") / "text.txt"
    file.write_text(" ".join(np.random.default_rng(0).choice(["sun", "road", "river", "dust"], 600)))
    return file


def test_a_bias_that_outvotes_is_exact(tmp_path: Path) -> None:
    """DeepSeek-V3 adds a bias to scores between 0 and 1; without the experts that it shuts out nothing changes."""
    model = write_mixture(tmp_path / "model", "deepseek_v3", experts=6, num_hidden_layers=2)

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        held["model.layers.1.mlp.gate.e_score_correction_bias"] = torch.tensor([0.0, 1.2, 1.1, 0.3, 1.0, 0.05])

    path = rewrite(model, tmp_path / "biased", change)
    said = unused_experts([str(path)])
    assert {f.edge.target.rpartition(".mlp")[2] for f in said.found} == {".experts.0", ".experts.5"} and len(
        said.found
    ) == 2
    assert {(f.edge.error, f.edge.guarantee, f.edge.bytes_freed) for f in said.found} == {
        (0.0, "exact", 3 * 16 * 32 * 4)
    }
    words = parsed(str(said.found[0].edge.command)).params
    assert (words["keep"], words["unseen"]) == ("0.666667", "drop")
    ids = torch.randint(3, 60, (4, 30), generator=torch.Generator().manual_seed(0))

    def without(held: dict[str, Any], config: dict[str, Any]) -> None:
        for name in held:
            if ".experts.0." in name or ".experts.5." in name:
                held[name] = torch.full_like(held[name], 7.0)

    other = rewrite(path, tmp_path / "other", without)
    assert torch.equal(logits_of(path, ids), logits_of(other, ids))


def test_pools_are_outvoted_from_within() -> None:
    class Place:
        beside = ("gate.e_score_correction_bias",)

    def of(bias: list[float], chosen: int, pools: int) -> list[int]:
        layer: Any = Paper(len(bias), chosen, pools)
        layer.place = Place()
        return outvoted(layer, [np.array(bias)])

    assert of([0, 1.5, 1.5, 2.4], 2, 1) == [0] and of([0, 1, 1, 2], 2, 1) == []  # a score may be rounded to 0 or 1
    assert of([0, 1.5, 3, 3], 2, 2) == []  # one in its pool is not enough
    assert of([0, 1.5, 2, 0, 0, 0], 2, 2) == [0]
    assert of([0, 1.5, 0, 0], 1, 1) == [0, 2, 3] and of([0, 1.5, 0, 0], 1, 2) == []  # a pool is judged by two


def test_against_what_transformers_routes(tmp_path: Path, text: Path) -> None:
    import transformers

    path = write_mixture(tmp_path / "model")
    said = unused_experts([str(path)], text=str(text), least=0.3, samples=6, length=64)
    ids = read_windows(text, torch_model.tokenizer(path), samples=6, length=64, vocabulary=64).ids
    with torch_model.quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).eval()
        inputs: list[Any] = []
        for block in model.model.layers:
            block.mlp.experts.register_forward_pre_hook(
                lambda m, given: inputs.append([g.double().numpy() for g in given])
            )
        model(torch.from_numpy(ids))
    held = {n: t.double().numpy() for n, t in tensors(path).items()}
    expected = {}
    for layer, (x, index, weight) in enumerate(inputs):
        squares = []
        for e in range(4):
            w1, w2, w3 = (
                held[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{w}.weight"] for w in ("w1", "w2", "w3")
            )
            token, place = np.nonzero(index == e)
            gate = x[token] @ w1.T
            norms = np.linalg.norm((gate / (1 + np.exp(-gate)) * (x[token] @ w3.T)) @ w2.T, axis=1)
            squares.append(len(token) * (weight[token, place] * norms).mean() ** 2 if len(token) else 0.0)
        for e in range(4):
            if (index == e).sum() <= 0.3 * index.size / 4:
                expected[f"model.layers.{layer}.block_sparse_moe.experts.{e}"] = np.sqrt(squares[e] / sum(squares))
    found = {f.edge.target.partition("::")[2]: f.edge.error for f in said.found}
    assert expected and found == pytest.approx(expected, rel=1e-4)
    assert said.figures[str(path)]["tokens"] == ids.size and said.figures[str(path)]["unused_on_text"] == len(expected)


def test_only_the_router_is_read_without_a_text(tmp_path: Path) -> None:
    path = write_mixture(tmp_path / "model")
    said = unused_experts([str(path)])
    held, ratios = tensors(path), []
    for layer in (0, 1):
        norms = np.linalg.norm(held[f"model.layers.{layer}.block_sparse_moe.gate.weight"].double().numpy(), axis=1)
        ratios.append(norms.min() / np.median(norms))
    assert said.found == ()
    assert said.figures[str(path)]["weakest_row_to_median"] == pytest.approx(min(ratios), rel=1e-6)
