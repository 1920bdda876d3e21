"""Weight matching through files and on arrays: what is merged, what is said, what is refused."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nett.core.cards  # noqa: E402
import nett.merge.engine  # noqa: E402
from nett.core.checkpoint import open_checkpoint  # noqa: E402
from nett.core.errors import Refused, UsageError  # noqa: E402
from nett.core.network import Network, read_data  # noqa: E402
from nett.core.symmetry import of_config, of_module  # noqa: E402
from nett.core.tiny import write_llama  # noqa: E402
from nett.merge.analysis import barrier, decomposed, distance_ratio, path, singular_alignment  # noqa: E402
from nett.merge.straight_through import straight_through  # noqa: E402
from nett.merge.weight_matching import weight_matching  # noqa: E402
from support import networks  # noqa: E402
from support.cli import nett as command  # noqa: E402
from support.symmetries import mlp, numbers  # noqa: E402
from support.tensors import read_tensors, write_tensors  # noqa: E402

CODE = """
from torch import nn
def small():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
"""


def small():
    scope = {}
    exec(CODE, scope)
    return scope["small"]()


def trained(seed, steps=60):
    """A small network that tells three clouds apart, and its data."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = (rng.normal(size=(240, 4)) + np.eye(4)[y] * 2.5).astype(np.float32)
    torch.manual_seed(seed)
    module = small()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return {n: t.detach().numpy() for n, t in module.state_dict().items()}, x, y


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bed")
    (folder / "net.py").write_text(CODE)
    paths, models = [], []
    for seed in range(3):
        model, x, y = trained(seed)
        models.append(model)
        write_tensors(folder / f"m{seed}.safetensors", model)
        paths.append(str(folder / f"m{seed}.safetensors"))
    np.savez(folder / "data.npz", x=x, y=y)
    return folder, paths, models, x, y


def floats(model):
    return {n: t for n, t in model.items() if t.dtype.kind == "f"}


def symmetry_of(models):
    return of_module(small(), torch.zeros(2, 4)).only(floats(models[0]))


# -- arrays -----------------------------------------------------------------------------------------------------


def test_models_in_their_places_are_averaged_as_they_are():
    symmetry = mlp(5, 16, 12, 3)
    first = numbers(symmetry, 0)
    second = {n: t + np.float32(0.01) * numbers(symmetry, 1)[n] for n, t in first.items()}
    found = weight_matching([first, second], symmetry)
    for name in first:
        expected = ((first[name].astype(np.float64) + second[name]) / 2).astype(np.float32)
        assert np.array_equal(found.tensors[name], expected)
    assert [row["moved"] for row in found.rows] == [0.0, 0.0]
    assert found.figures["objective_before"] == found.figures["objective_after"]


@pytest.mark.parametrize("count", [2, 3])
def test_permuted_copies_are_one_network(count):
    symmetry = mlp(5, 16, 12, 3)
    first = numbers(symmetry, 0)
    rng = np.random.default_rng(1)
    copies = [first, *(symmetry.apply(first, symmetry.random(rng)) for _ in range(count - 1))]
    found = weight_matching(copies, symmetry)
    assert found.rows[-1]["distance_after"] == 0 < found.rows[-1]["distance_before"]
    x = rng.normal(size=(20, 5)).astype(np.float32)
    assert np.allclose(forward(found.tensors, x), forward(first, x), rtol=1e-5, atol=1e-5)
    if count == 2:  # the first stays where it is
        assert all(np.array_equal(found.tensors[n], first[n]) for n in first)


def forward(tensors, x):
    for i in range(3):
        x = x @ tensors[f"{i}.weight"].T + tensors[f"{i}.bias"]
        x = np.maximum(x, 0) if i < 2 else x
    return x


def test_weights_restarts_and_the_orders_that_are_told():
    symmetry = mlp(5, 16, 12, 3)
    models = [numbers(symmetry, s) for s in range(2)]
    found = weight_matching(models, symmetry, weights=[3.0, 1.0])
    orders = [
        {g: np.array(o) for g, o in one.items()} for one in json.loads(found.files["permutations.json"])["models"]
    ]
    placed = symmetry.apply(models[1], orders[1])
    for name in models[0]:
        expected = (models[0][name].astype(np.float64) * 3 + placed[name]) / 4
        assert np.array_equal(found.tensors[name], expected.astype(np.float32))
    more = weight_matching(models, symmetry, restarts=12)
    assert more.figures["objective_after"] >= found.figures["objective_after"]
    again = weight_matching(models, symmetry, restarts=12)
    assert all(np.array_equal(more.tensors[n], again.tensors[n]) for n in models[0])


def test_weights_that_sum_to_nothing_are_refused():
    symmetry = mlp(5, 16, 12, 3)
    with pytest.raises(UsageError, match="weights = 1, -1 sum to 0"):
        weight_matching([numbers(symmetry, s) for s in range(2)], symmetry, weights=[1.0, -1.0])


def test_straight_through_lowers_the_loss_half_way(bed):
    _, _, models, x, y = bed
    symmetry, network = symmetry_of(models), Network(small(), x, y)
    first, second = floats(models[0]), floats(models[1])

    def half_way(orders):
        placed = symmetry.apply(second, orders)
        return network.loss({n: ((first[n] + placed[n]) / 2).astype(np.float32) for n in first})[0]

    found = straight_through(first, second, symmetry, network, epochs=6, rate=0.01, batch=120, seed=0)
    assert half_way(found.orders) < half_way(symmetry.identity())
    assert half_way(found.orders) == pytest.approx(-found.objective[-1])
    assert list(found.objective) == sorted(found.objective)
    with pytest.raises(UsageError, match="needs data"):
        weight_matching([first, second], symmetry, search="straight-through")


def test_gradients_are_those_of_differences(bed):
    _, _, models, x, y = bed
    network, tensors = Network(small(), x[:16], y[:16]), {n: t.astype(np.float32) for n, t in floats(models[0]).items()}
    loss, found = network.gradients(tensors, np.arange(16))
    assert loss == pytest.approx(network.loss(tensors)[0], rel=1e-5)
    assert set(found) == {n for n in tensors if "running" not in n}
    for sign in (1, -1):
        moved = {n: t.astype(np.float64) for n, t in tensors.items()}
        moved["3.weight"][2, 5] += sign * 1e-4
        value = Network(small().double(), x[:16].astype(np.float64), y[:16]).loss(moved)[0]
        loss = value if sign > 0 else (loss - value) / 2e-4
    assert found["3.weight"][2, 5] == pytest.approx(loss, rel=2e-3, abs=1e-6)


def test_statistics_are_those_of_the_merged_network(bed):
    """BatchNorm's mean and variance (unbiased, as torch keeps it) of what its layer gives, over all inputs."""
    _, _, models, x, y = bed
    symmetry, network = symmetry_of(models), Network(small(), x, y, batch=240)
    found = weight_matching([floats(m) for m in models[:2]], symmetry, network).tensors
    given = x @ found["0.weight"].T + found["0.bias"]
    assert np.allclose(found["1.running_mean"], given.mean(0), atol=1e-5)
    assert np.allclose(found["1.running_var"], given.var(0, ddof=1), rtol=1e-4)
    plain = weight_matching([floats(m) for m in models[:2]], symmetry, network, statistics=False).tensors
    assert not np.allclose(plain["1.running_mean"], given.mean(0), atol=1e-3)
    assert np.array_equal(plain["0.weight"], found["0.weight"])


# -- analysis ---------------------------------------------------------------------------------------------------


def test_barrier_by_hand():
    line = [(0.0, 1.0, 0.0), (0.25, 2.0, 0.0), (0.5, 3.5, 0.0), (0.75, 2.0, 0.0), (1.0, 2.0, 0.0)]
    assert barrier(line) == pytest.approx(3.5 - 1.5)
    assert barrier([(0.0, 2.0, 0.0), (0.5, 1.0, 0.0), (1.0, 2.0, 0.0)]) == 0.0


def test_path_ends_at_the_networks(bed):
    _, _, models, x, y = bed
    network, (a, b) = Network(small(), x, y), (floats(m) for m in models[:2])
    line = path(a, b, network, points=3)
    assert [p[0] for p in line] == [0.0, 0.5, 1.0]
    assert line[0][1:] == network.loss(a) and line[2][1:] == network.loss(b)


def test_singular_vectors_of_a_permuted_copy():
    symmetry = mlp(8, 24, 24, 8)
    one = numbers(symmetry, 0, np.float64)
    copy = symmetry.apply(one, symmetry.random(np.random.default_rng(1)))
    back = symmetry.apply(copy, json_orders(weight_matching([one, copy], symmetry)))
    parts = [decomposed(t) for t in (one, copy, back)]
    for name in parts[0]:  # equal singular values, whatever the places
        assert np.allclose(parts[0][name][1], parts[1][name][1])
    for gamma in (0.0, 0.1, 0.3):
        assert singular_alignment(parts[0], parts[2], gamma) == pytest.approx(1.0)
        assert abs(singular_alignment(parts[0], parts[1], gamma)) < 0.2
    assert distance_ratio(one, copy, back) == pytest.approx(1.0)


def json_orders(found):
    return {g: np.array(o) for g, o in json.loads(found.files["permutations.json"])["models"][1].items()}


def test_alignment_by_its_formula():
    rng = np.random.default_rng(3)
    one, other = ({"w": rng.normal(size=(5, 4)), "v": rng.normal(size=(3, 5))} for _ in range(2))
    total = count = 0.0
    for name in one:
        u, s, v = np.linalg.svd(one[name], full_matrices=False)
        x, t, y = np.linalg.svd(other[name], full_matrices=False)
        for i in range(len(s)):
            for j in range(len(t)):
                if s[i] >= 0.3 * s[0] and t[j] >= 0.3 * t[0]:
                    total += float(u[:, i] @ x[:, j]) * float(v[i] @ y[j])
        count += np.count_nonzero(s >= 0.3 * s[0])
    assert singular_alignment(decomposed(one), decomposed(other), 0.3) == pytest.approx(total / count)


# -- files ------------------------------------------------------------------------------------------------------


def test_from_the_command_line(bed, tmp_path):
    folder, paths, models, _, _ = bed
    line = ["merge", "weight-matching", *paths, "--net", f"{folder}/net.py:small", "--data", f"{folder}/data.npz"]
    command(*line, "--analysis", "--out", str(tmp_path / "out")).succeeded()
    receipt = json.loads((tmp_path / "out" / "nett.json").read_text())
    assert [c["name"] for c in receipt["checks"]] == ["finite", "symmetry"]
    assert receipt["figures"]["objective_after"] > receipt["figures"]["objective_before"]
    assert len(receipt["models"]) == 3 and receipt["figures"]["singular_values_changed"] < 1e-6
    assert set(receipt["figures"]["barrier"]) == {"as they are", "matched", "permuted at random"}
    page = (tmp_path / "out" / "nett.html").read_text()
    assert "Loss between the first and the second model" in page and "Alignment of singular vectors" in page
    found = read_tensors(tmp_path / "out")
    assert set(found) == set(models[0])
    assert np.array_equal(found["1.num_batches_tracked"], models[0]["1.num_batches_tracked"])
    orders = json.loads((tmp_path / "out" / "permutations.json").read_text())["models"]
    symmetry = symmetry_of(models)
    placed = [
        symmetry.apply(floats(m), {g: np.array(o) for g, o in one.items()})
        for m, one in zip(models, orders, strict=True)
    ]
    mean = np.mean([p["3.weight"].astype(np.float64) for p in placed], axis=0)
    assert np.allclose(found["3.weight"], mean, atol=1e-7)
    command("verify", str(tmp_path / "out"), "--rerun").succeeded()
    assert command("restore", str(tmp_path / "out"), "--out", str(tmp_path / "back")).code == 3


def test_a_language_model_is_found_again(tmp_path):
    pytest.importorskip("transformers")
    base = write_llama(tmp_path / "one", hidden=32, heads=4, kv_heads=2, inter=48, dtype="F32")
    with open_checkpoint(base) as one:
        tensors = {n: one.values(n).reshape(t.shape) for n, t in one.tensors.items()}
        symmetry = of_config(one.config(), {n: t.shape for n, t in tensors.items()})
    copy = symmetry.apply(tensors, symmetry.random(np.random.default_rng(0)))
    other = write_llama(tmp_path / "two", hidden=32, heads=4, kv_heads=2, inter=48, dtype="F32")
    write_tensors(other / "model.safetensors", copy, "F32", format="pt")
    receipt = nett.merge.engine.run(
        nett.core.cards.find_card("merge/weight_matching"),
        [str(base), str(other)],
        {},
        out=tmp_path / "out",
        speak=False,
    )
    assert receipt["models"][1]["distance_before"] > 1 and receipt["models"][1]["distance_after"] == 0
    found = read_tensors(tmp_path / "out")
    assert all(np.array_equal(found[n], tensors[n]) for n in tensors)
    assert (tmp_path / "out" / "config.json").is_file() and (tmp_path / "out" / "tokenizer.json").is_file()


def test_what_is_refused_and_said(bed, tmp_path):
    folder, paths, _, _, _ = bed
    net, out = ["--net", f"{folder}/net.py:small"], ["--out", str(tmp_path / "out")]
    line = ["merge", "weight-matching", *paths[:2]]
    command(*line, *out).failed(3, "--net FILE.py:FUNCTION")
    command(*line, *net, *out).failed(2, "Add --input")
    command(*line, "--data", f"{folder}/data.npz", *out).failed(2, "Add --net")
    command(*line, *net, "--base", paths[2], *out).failed(2, "--base means nothing to this method")
    command("merge", "linear", *paths, *net, *out).failed(2, "--net means nothing to this method")
    command(*line, *net, "--input", "2x4", "--search", "straight-through", *out).failed(2, "needs data")
    command(*line, *net, "--input", "2x4", "--weights", "1,2,3", *out).failed(2, "3 values for 2 models")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="mean nothing to it"):
        nett.merge.engine.run(nett.core.cards.find_card("merge/linear"), paths, {}, out=tmp_path / "out", net="a.py:b")
    np.savez(tmp_path / "bad.npz", z=np.zeros(3))
    with pytest.raises(Refused, match="holds no array 'x', only z"):
        read_data(tmp_path / "bad.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(Refused, match="not a NumPy archive"):
        read_data(tmp_path / "text.npz")


def test_a_network_gives_what_its_module_gives():
    module = networks.ResNet(1, "A").eval()
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    network = Network(networks.ResNet(1, "A"), x, batch=2)
    tensors = {n: t.numpy() for n, t in module.state_dict().items() if t.is_floating_point()}
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert np.allclose(network.outputs(tensors), expected, atol=1e-5)
    taps = list(network.taps(tensors, ["linear"]))
    assert len(taps) == 3
    assert np.allclose(np.concatenate([t["linear"][1] for t in taps]), expected, atol=1e-5)
    with pytest.raises(UsageError, match="no labels"):
        network.loss(tensors)


@pytest.mark.parametrize("order", [("tied", "apart"), ("apart", "tied")])
def test_tied_and_untied_output_layers_do_not_go_together(tmp_path, order):
    for name in order:
        write_llama(tmp_path / name, tied=name == "tied")
    words = [str(tmp_path / name) for name in order]
    answer = command("merge", "weight_matching", *words, "--out", str(tmp_path / "out"), "--no-speak")
    answer.failed(3)
    assert "tied: has no tensor 'lm_head.weight', which" in answer.err and not (tmp_path / "out").exists()
    hint = shlex.split(answer.err[answer.err.index("nett merge linear") :])[1:]  # what it says helps
    command(*(str(tmp_path / "own") if word == "OUT" else word for word in hint), "--no-speak").succeeded()
    own, was = read_tensors(tmp_path / "own"), read_tensors(tmp_path / "tied")
    assert np.array_equal(own["lm_head.weight"], own["model.embed_tokens.weight"])
    assert all(np.array_equal(own[name], array) for name, array in was.items())
    models = [str(tmp_path / name.replace("tied", "own")) for name in order]
    command("merge", "weight_matching", *models, "--out", str(tmp_path / "out"), "--no-speak").succeeded()
