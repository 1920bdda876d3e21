"""Feature merging on real modules: planted copies go without a trace, and what may not merge is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import nett  # noqa: E402
from nett.core.errors import Refused, UsageError  # noqa: E402
from nett.core.symmetry import of_module, proved_symmetry  # noqa: E402
from nett.core.symmetry.fitting import fitted  # noqa: E402
from nett.core.symmetry.merging import mergeable  # noqa: E402
from nett.core.symmetry.widths import GroupMap, UnitMap, resized  # noqa: E402
from nett.core.tiny import write_llama  # noqa: E402
from nett.merge.ifm import merged_module  # noqa: E402
from support.networks import Dense, Norms, ResNet, mlp  # noqa: E402
from support.tensors import read_tensors, write_tensors  # noqa: E402


class ConvNet(torch.nn.Module):
    """Convolutions with BatchNorm, one in two steps, then flattened channels."""

    def __init__(self, activation: Any = torch.nn.ReLU) -> None:
        super().__init__()
        self.c1, self.b1 = torch.nn.Conv2d(1, 6, 3, padding=1, bias=False), torch.nn.BatchNorm2d(6)
        self.depth, self.b2 = torch.nn.Conv2d(6, 6, 3, groups=6), torch.nn.BatchNorm2d(6)
        self.c2, self.b3 = torch.nn.Conv2d(6, 5, 1), torch.nn.BatchNorm2d(5, eps=1e-3)
        self.fc1, self.fc2 = torch.nn.Linear(5 * 36, 7), torch.nn.Linear(7, 3)
        self.act = activation()

    def forward(self, x: Any) -> Any:
        x = self.act(self.b2(self.depth(self.act(self.b1(self.c1(x))))))
        x = torch.flatten(self.act(self.b3(self.c2(x))), 1)
        return self.fc2(self.act(self.fc1(x)))


def random_weights(module: Any, seed: int = 0) -> Any:
    """float64 everywhere; statistics and weights of normalisations that are not those they begin with."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                scale = 1.0 if tensor.dim() < 2 else tensor[0].numel() ** -0.5
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale
                tensor.copy_(values.abs() + 0.5 if "var" in name else values)
    return module


def planted(module: Any, example: Any, copies: int, *, stretch: bool = False, split: str = "even") -> tuple[Any, Any]:
    """The module with ``copies`` copies of units in each group that can be wider, and those groups' symmetry.

    split: how what reads a copied unit is shared. stretch: each copy's layer before a BatchNorm is multiplied by a
    number of its own, and the statistics with it, so that only the folded weights are equal.
    """
    symmetry = mergeable(proved_symmetry_of(module, example)).symmetry
    tensors = {n: t.numpy().copy() for n, t in module.state_dict().items() if t.is_floating_point()}
    rng = np.random.default_rng(1)
    maps = {}
    for group in symmetry.groups:
        source = np.concatenate([np.arange(group.size), rng.integers(0, group.size, copies)])
        read = 1 / np.bincount(source)[source] if split == "even" else rng.uniform(0.1, 1, len(source))
        read /= np.bincount(source, read)[source]
        once = np.eye(group.size)[source]
        maps[group.name] = GroupMap(UnitMap.of_matrix(once), UnitMap.of_matrix(once * read[:, None]))
    wide, arrays = resized(symmetry.only(tensors), tensors, maps)
    if stretch:
        for norm, layer in symmetry.folds.items():
            factor = rng.uniform(0.3, 3, len(arrays[f"{norm}.weight"]))
            arrays[f"{norm}.running_var"] = factor**2 * (arrays[f"{norm}.running_var"] + EPS[norm]) - EPS[norm]
            arrays[f"{norm}.running_mean"] *= factor
            arrays[f"{layer}.weight"] *= factor[:, None, None, None]
            if f"{layer}.bias" in arrays:
                arrays[f"{layer}.bias"] *= factor
    return fitted(module, arrays), wide


def zeros(*shape: Any) -> Any:
    return torch.zeros(*shape, dtype=torch.float64)


EPS = {"b1": 1e-5, "b2": 1e-5, "b3": 1e-3}


def proved_symmetry_of(module: Any, example: Any) -> Any:
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    return proved_symmetry(shapes, module=module, example=example)[0]


def outputs(module: Any, shape: tuple[int, ...], seed: int = 5) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: mlp(6, 9, 8, 4), (16, 6)),
    "convolutions": (ConvNet, (3, 1, 8, 8)),
    "ResNet A": (lambda: ResNet(1, "A"), (2, 3, 8, 8)),
    "ResNet B": (lambda: ResNet(1, "B"), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", [n if n != "ResNet A" else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_planted_copies_are_found_and_nothing_else(name: str) -> None:
    make, shape = NETWORKS[name]
    narrow = random_weights(make())
    wide, symmetry = planted(narrow, zeros(shape), 3)
    before = outputs(wide, shape)
    np.testing.assert_allclose(before, outputs(narrow, shape), rtol=1e-10, atol=1e-10)
    again, found = merged_module(wide, zeros(shape), beta=1e-6)
    np.testing.assert_allclose(outputs(again, shape), before, rtol=1e-10, atol=1e-12 * np.abs(before).max())
    shapes = {n: t.shape for n, t in again.state_dict().items()}
    assert shapes == {n: t.shape for n, t in narrow.state_dict().items()}
    assert found.figures["units_before"] - found.figures["units_after"] == 3 * len(symmetry.groups)
    assert type(again) is type(wide) and again is not wide


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_copies_whose_folded_weights_alone_are_equal(split: str) -> None:
    """Their convolutions and statistics differ; only normalisation and convolution together are the same."""
    shape = (3, 1, 8, 8)
    narrow = random_weights(ConvNet())
    wide, _ = planted(narrow, zeros(shape), 2, stretch=True, split=split)
    before = outputs(wide, shape)
    np.testing.assert_allclose(before, outputs(narrow, shape), rtol=1e-9, atol=1e-10)
    again, _ = merged_module(wide, zeros(shape), beta=1e-9, match="producers")
    np.testing.assert_allclose(outputs(again, shape), before, rtol=1e-9, atol=1e-10)
    assert again.c2.weight.shape == narrow.c2.weight.shape and again.c1.weight.shape == narrow.c1.weight.shape
    joint, _ = merged_module(wide, zeros(shape), beta=1e-9)
    assert (joint.c2.weight.shape == narrow.c2.weight.shape) == (split == "even")


def test_merging_unlike_units_is_the_mean_and_the_sum_by_hand() -> None:
    """One hidden layer with BatchNorm, two units forced together: mean of the folded rows, sum of the columns."""
    module = random_weights(
        torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2), torch.nn.ReLU(), torch.nn.Linear(2, 3))
    )
    made, _ = merged_module(module, zeros(5, 4), beta=1.0)
    state = {n: t.numpy() for n, t in module.state_dict().items()}
    scale = state["1.weight"] / np.sqrt(state["1.running_var"] + 1e-5)
    row = (scale[:, None] * state["0.weight"]).mean(0)
    shift = (scale * (state["0.bias"] - state["1.running_mean"]) + state["1.bias"]).mean()
    x = np.random.default_rng(0).normal(size=(5, 4))
    hidden = np.maximum(x @ row + shift, 0)
    expected = hidden[:, None] * state["3.weight"].sum(1) + state["3.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(made(torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-13)
    new = {n: t.numpy() for n, t in made.state_dict().items()}
    kept = int(np.argmax(np.abs(scale)))
    assert new["1.running_var"] == state["1.running_var"][kept] and new["1.weight"] == state["1.weight"][kept]
    mean_input = (new["0.weight"] @ x.mean(0) + new["0.bias"] - new["1.running_mean"]) * scale[kept]
    each = scale * (state["0.weight"] @ x.mean(0) + state["0.bias"] - state["1.running_mean"])
    np.testing.assert_allclose(mean_input, each.mean(), rtol=1e-12)


def test_beta_zero_is_the_network_bit_for_bit_and_larger_betas_keep_fewer_units() -> None:
    for make, shape in (NETWORKS["mlp"], NETWORKS["convolutions"]):
        module = make().eval()
        example = torch.zeros(shape)
        same, _ = merged_module(module, example, beta=0.0)
        assert all(
            torch.equal(a, b) for a, b in zip(same.state_dict().values(), module.state_dict().values(), strict=True)
        )
    module, example = random_weights(mlp(6, 24, 16, 4)), zeros(2, 6)
    units = [merged_module(module, example, beta=b)[1].figures["units_after"] for b in (0, 0.1, 0.3, 0.5, 0.8, 1)]
    assert units == sorted(units, reverse=True) and units[0] == 40 and units[-1] == 2 and len(set(units)) > 3
    halved, _ = merged_module(module, example, beta=1.0, max_ratio=0.5)
    assert halved[0].out_features == 12 and halved[2].out_features == 8


def test_the_same_bits_twice_and_inputs_untouched() -> None:
    """Also from arrays in another order, laid out the other way in memory."""
    module = random_weights(ConvNet())
    symmetry = proved_symmetry_of(module, zeros(2, 1, 8, 8))
    arrays = {n: t.numpy().copy() for n, t in module.state_dict().items() if t.is_floating_point()}
    before = {n: t.copy() for n, t in arrays.items()}
    other = {n: np.asfortranarray(arrays[n]) for n in reversed(list(arrays))}
    one, two = (nett.merge.ifm(a, symmetry.only(arrays), beta=0.6) for a in (arrays, other))
    assert one.figures == two.figures and one.files == two.files
    assert all(np.array_equal(one.tensors[n], two.tensors[n]) for n in arrays)
    assert all(np.array_equal(arrays[n], before[n]) for n in arrays)


def test_directions_up_to_a_factor_merge_exactly_where_the_activation_allows_it() -> None:
    module = random_weights(mlp(5, 6, 3))
    with torch.no_grad():
        module[0].weight[4], module[0].bias[4] = 2.5 * module[0].weight[1], 2.5 * module[0].bias[1]
    example = zeros(2, 5)
    plain, _ = merged_module(module, example, beta=1e-9, match="producers")
    made, found = merged_module(module, example, beta=1e-9, match="producers", normalize=True)
    assert plain[0].out_features == 6 and made[0].out_features == 5 and not found.notes
    np.testing.assert_allclose(outputs(made, (9, 5)), outputs(module, (9, 5)), rtol=1e-12, atol=1e-12)
    module[1] = torch.nn.GELU()
    made, found = merged_module(module, example, beta=1e-9, match="producers", normalize=True)
    assert made[0].out_features == 6 and "does not scale" in found.notes[0] and found.notes[0].startswith("0:")


def test_scaling_with_normalisations_before_and_between() -> None:
    """A folded BatchNorm scales with its unit; a depthwise convolution between does not, and is left alone."""
    shape = (3, 1, 8, 8)
    narrow = random_weights(ConvNet())
    wide, _ = planted(narrow, zeros(shape), 2, stretch=True)
    with torch.no_grad():
        wide.b3.weight[-1] *= 4
        wide.b3.bias[-1] *= 4
        wide.fc1.weight[:, -36:] /= 4
    made, found = merged_module(wide, zeros(shape), beta=1e-9, normalize=True)
    np.testing.assert_allclose(outputs(made, shape), outputs(wide, shape), rtol=1e-9, atol=1e-10)
    assert made.c2.weight.shape == narrow.c2.weight.shape and made.c1.weight.shape == narrow.c1.weight.shape
    assert [n.split(":")[0] for n in found.notes if "does not scale" in n] == ["c1"]


def test_what_may_not_merge_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="no units of this network may be merged") as caught:
        merged_module(Norms(), torch.zeros(2, 1, 8, 8))
    said = str(caught.value)
    assert "fc1: not merged" in said and "layernorm sees how many units there are" in said
    assert "groupnorm sees how many units there are" in said
    _, found = merged_module(Dense(), torch.zeros(2, 3, 8, 8))
    assert any("grouped convolution" in note for note in found.notes)
    _, found = merged_module(ResNet(1, "A"), torch.zeros(2, 3, 8, 8), beta=0.5)
    assert any("not merged" in note for note in found.notes)


def test_bad_input_is_told_in_sentences() -> None:
    module, example = mlp(3, 4, 2), torch.zeros(1, 3)
    with pytest.raises(UsageError, match=r"beta = 1.5 is out of range: 0 <= beta <= 1"):
        merged_module(module, example, beta=1.5)
    with pytest.raises(UsageError, match="match = 'both' is not one of joint, producers"):
        merged_module(module, example, match="both")
    with pytest.raises(UsageError, match="unknown parameter 'betas'"):
        merged_module(module, example, betas=0.1)
    with pytest.raises(UsageError, match="example of its input"):
        merged_module(module, None)
    with pytest.raises(Refused, match=r"no units of this network may be merged|no group of units"):
        merged_module(mlp(3, 2), example)


def test_plain_arrays_without_code() -> None:
    """The Python call on arrays: what is known without running anything is still refused."""
    module = random_weights(mlp(6, 9, 8, 4))
    symmetry = of_module(module, zeros(1, 6))
    arrays = {n: t.numpy() for n, t in module.state_dict().items()}
    found = nett.merge.ifm(arrays, symmetry, beta=1.0, max_ratio=0.5, report=False)
    assert found.tensors["0.weight"].shape == (4, 6) and found.tensors["2.weight"].shape == (4, 4) and not found.files


# -- files ------------------------------------------------------------------------------------------------------


def llama_with_copies(folder: Path, copies: tuple[int, int]) -> tuple[Path, dict[str, np.ndarray]]:
    """A tiny gated model of float32 with planted neurons: ``copies`` of each layer's neurons stand in others' places."""
    write_llama(folder, dtype="F32", inter=16, hidden=32)
    tensors = read_tensors(folder)
    for layer, count in enumerate(copies):
        gate, up, down = (tensors[f"model.layers.{layer}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        for k in range(count):
            gate[15 - k], up[15 - k] = gate[k], up[k]
            down[:, k] /= 2
            down[:, 15 - k] = down[:, k]
    write_tensors(folder / "model.safetensors", tensors, "F32")
    return folder, tensors


def logits(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    with torch.no_grad():
        return np.asarray(model(torch.arange(2, 40)[None]).logits)


def test_a_gated_transformer_loses_its_copies_and_stock_transformers_loads_it(tmp_path: Path) -> None:
    folder, _ = llama_with_copies(tmp_path / "m", (5, 3))
    receipt = run(folder, tmp_path / "out", beta=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 13  # the second layer has three copies to give
    made = read_tensors(tmp_path / "out")
    assert made["model.layers.0.mlp.gate_proj.weight"].shape == (13, 32)
    assert made["model.layers.1.mlp.down_proj.weight"].shape == (32, 13)
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(folder), rtol=1e-6, atol=1e-7)
    assert any("one width for all" in n and "would keep 11" in n for n in receipt["notes"])
    assert any(n.startswith("residual: not merged: norms see") for n in receipt["notes"])
    weights = next(o["bytes"] for o in receipt["outputs"] if o["path"] == "model.safetensors")
    assert receipt["proof"] == "kept" and weights < receipt["bytes_before"]
    complexity = json.loads((tmp_path / "out" / "feature_complexity.json").read_text())
    assert complexity["layers"]["model.layers.0.mlp"]["complexity"][0] == 11 / 16
    assert complexity["layers"]["model.layers.0.mlp"]["kept"] == 13
    text = (tmp_path / "out" / "feature_complexity.txt").read_text()
    assert text.splitlines()[1].split()[:3] == ["model.layers.0.mlp", "16", "0.688"]
    assert "Layer-wise feature complexity" in (tmp_path / "out" / "nett.html").read_text()


def run(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    from nett.core.cards import find_card
    from nett.merge.engine import run as engine_run

    card = find_card("merge/ifm")
    names = {p.name for p in card.parameters}
    given = {k: v for k, v in options.items() if k in names}
    more = {k: v for k, v in options.items() if k not in names}
    return engine_run(card, [str(folder)], given, out=out, **({"speak": False} | more))
