"""PLeaS: its two ends are exact, planted copies are found, and every layer is the least-squares solution."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load  # noqa: E402

from nett.core.errors import NettError, Refused, UsageError  # noqa: E402
from nett.core.network import Network  # noqa: E402
from nett.core.symmetry import of_module, proved_symmetry  # noqa: E402
from nett.core.symmetry.fitting import fitted  # noqa: E402
from nett.merge.pleas import merged_modules, pleas  # noqa: E402
from nett.merge.weight_matching import weight_matching  # noqa: E402
from support.networks import Dense, Norms, ResNet, mlp  # noqa: E402

CNN_INPUT = (40, 1, 6, 6)


class Cnn(torch.nn.Module):
    """Two convolutions with BatchNorm, a flattened end, unequal widths everywhere."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(1, 5, 3, padding=1, bias=False), torch.nn.BatchNorm2d(5)
        self.conv2, self.bn2 = torch.nn.Conv2d(5, 7, 3, stride=2), torch.nn.BatchNorm2d(7)
        self.fc, self.head = torch.nn.Linear(28, 9), torch.nn.Linear(9, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(torch.relu(self.fc(x.flatten(1))))


def weights(make, seed):
    """A network of random numbers, float64, with BatchNorm statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    module = make().double().eval()
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + (0.5 if "bias" not in name else -0.5))
    return module, {n: t.numpy().copy() for n, t in module.state_dict().items() if t.is_floating_point()}


def pair(make, shape, seeds=(1, 2)):
    """Two networks, their proved symmetry, and the code with random inputs."""
    (module, one), (_, two) = (weights(make, s) for s in seeds)
    inputs = np.random.default_rng(0).normal(size=shape)
    symmetry, _ = proved_symmetry(
        {n: t.shape for n, t in one.items()}, module=module.float(), example=torch.zeros(shape)[:2]
    )
    return [one, two], symmetry, Network(module.double(), inputs, batch=16)


def outputs(network, tensors):
    module = fitted(network.module, tensors).double().eval()
    with torch.no_grad():
        return module(torch.from_numpy(network.inputs)).numpy()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NETWORKS = {
    "mlp": (lambda: mlp(6, 5, 9, 3), (40, 6)),
    "cnn": (Cnn, CNN_INPUT),
    "resnet": (lambda: ResNet(1, "B", (3, 4, 5), 4), (12, 3, 8, 8)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def given(request):
    return pair(*NETWORKS[request.param])


@pytest.fixture(scope="module")
def small():
    return pair(*NETWORKS["cnn"])


@pytest.mark.parametrize(("match", "squares"), [("activations", True), ("weights", False)])
def test_all_kept_apart_is_the_mean_of_the_outputs(given, match, squares):
    """In float64, to 1e-12 of the largest output."""
    models, symmetry, network = given
    found = pleas(models, symmetry, network, ratio=1.0, match=match, squares=squares)
    expected = (outputs(network, models[0]) + outputs(network, models[1])) / 2
    np.testing.assert_allclose(outputs(network, found.tensors), expected, atol=1e-12 * np.abs(expected).max(), rtol=0)
    assert found.figures["parameters_result"] <= 2 * found.figures["parameters_one_network"]
    twice = pleas(models, symmetry, network, budget=2.0, match=match, squares=squares, spread="uniform")
    assert all(np.array_equal(t, twice.tensors[n]) for n, t in found.tensors.items())


def test_all_merged_without_least_squares_is_weight_matching_to_the_bit(given):
    models, symmetry, network = given
    for dtype in (np.float64, np.float32):
        both = [{n: t.astype(dtype) for n, t in m.items()} for m in models]
        found = pleas(both, symmetry, network, budget=1.0, match="weights", squares=False)
        expected = weight_matching(both, symmetry, network)
        assert found.tensors.keys() == expected.tensors.keys()
        assert all(found.tensors[n].tobytes() == t.tobytes() for n, t in expected.tensors.items())
        assert all(found.tensors[n].dtype == dtype for n in found.tensors)


@pytest.mark.parametrize(("match", "ratio"), [("activations", 0.0), ("weights", 0.4), ("activations", 1.0)])
def test_a_permuted_copy_is_the_same_network_at_any_ratio(given, match, ratio):
    (one, _), symmetry, network = given
    copy = symmetry.apply(one, symmetry.random(np.random.default_rng(3)))
    found = pleas([one, copy], symmetry, network, ratio=ratio, match=match, statistics=False)
    expected = outputs(network, one)
    np.testing.assert_allclose(outputs(network, found.tensors), expected, atol=1e-10 * np.abs(expected).max(), rtol=0)


def features(tensors, x):
    """Plain NumPy: what each layer of a ReLU network takes and gives."""
    found = []
    count = len([n for n in tensors if n.endswith("weight")])
    for k in range(count):
        y = x @ tensors[f"{2 * k}.weight"].T + tensors[f"{2 * k}.bias"]
        found.append((x, y))
        x = np.maximum(y, 0)
    return found


def test_every_layer_is_the_least_squares_solution():
    """Against numpy.linalg.lstsq on the stacked inputs, row block by row block, for layers that are not square; of the
    many solutions where units are dead on all inputs, the one nearest to the averages."""
    models, symmetry, network = pair(lambda: mlp(6, 8, 5, 7, 3), (200, 6))
    found = pleas(models, symmetry, network, ratio=0.4, match="weights", ridge=0.0)
    averages = pleas(models, symmetry, network, ratio=0.4, match="weights", squares=False).tensors
    record = json.loads(found.files["pleas.json"])
    orders, apart = record["orders"], record["apart"]
    two = symmetry.apply(models[1], {n: np.array(o) for n, o in orders.items()})
    ours, theirs = features(models[0], network.inputs), features(two, network.inputs)
    groups = [None, *[apart[f"{2 * k}"] for k in range(3)], None]
    widths = [6, 8, 5, 7, 3]

    def blocks(a, b, units, width):
        units = [] if units is None else units
        rest = np.setdiff1d(np.arange(width), units)
        return [(a[:, rest] + b[:, rest]) / 2, a[:, units], b[:, units]]

    for k, (before, after) in enumerate(pairwise(range(5))):
        z = blocks(ours[k][0], theirs[k][0], groups[before], widths[before])
        y = blocks(ours[k][1], theirs[k][1], groups[after], widths[after])
        ones = np.ones((200, 1))
        got = np.hstack([found.tensors[f"{2 * k}.weight"], found.tensors[f"{2 * k}.bias"][:, None]])
        sizes = [b.shape[1] for b in z]
        offsets = np.cumsum([0, *sizes])
        row = 0
        for part, allowed in zip(y, ([0, 1, 2], [0, 1], [0, 2]), strict=True):
            columns = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in allowed] + [[offsets[3]]])
            inputs = np.hstack([*(z[i] for i in allowed), ones])
            start = np.hstack([averages[f"{2 * k}.weight"], averages[f"{2 * k}.bias"][:, None]])
            first = start[row : row + part.shape[1]][:, columns]
            solution = first + np.linalg.lstsq(inputs, part - inputs @ first.T, rcond=None)[0].T
            rows = got[row : row + part.shape[1]]
            np.testing.assert_allclose(rows[:, columns], solution, atol=1e-8)
            forbidden = np.setdiff1d(np.arange(got.shape[1]), columns)
            assert not rows[:, forbidden].any()
            row += part.shape[1]
    assert all(r["error_after"] <= r["error_before"] for r in record["layers"])
    assert sum(r["error_after"] for r in record["layers"]) < sum(r["error_before"] for r in record["layers"])


def test_convolutions_are_solved_as_plain_sums_over_positions():
    """One strided convolution with padding, by loops in NumPy."""
    models, symmetry, network = pair(Cnn, CNN_INPUT)
    found = pleas(models, symmetry, network, ratio=0.5, match="weights", ridge=0.0)
    record = json.loads(found.files["pleas.json"])
    two = symmetry.apply(models[1], {n: np.array(o) for n, o in record["orders"].items()})
    name = next(
        g.name for g in symmetry.groups if any(p.tensor == "conv2.weight" and p.role == "consumer" for p in g.places)
    )
    taps = [
        next(Network(network.module, network.inputs, batch=99).taps(m, ["conv2"]))["conv2"] for m in (models[0], two)
    ]
    units = record["apart"][name]
    rest = np.setdiff1d(np.arange(5), units)
    z = np.concatenate([(taps[0][0][:, rest] + taps[1][0][:, rest]) / 2, taps[0][0][:, units], taps[1][0][:, units]], 1)
    out = next(
        g.name for g in symmetry.groups if any(p.tensor == "conv2.weight" and p.role == "producer" for p in g.places)
    )
    merged = np.setdiff1d(np.arange(7), record["apart"][out])
    y = (taps[0][1][:, merged] + taps[1][1][:, merged]) / 2
    rows = [
        np.append(z[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].reshape(-1), 1.0)
        for n in range(len(z)) for i in range(2) for j in range(2)
    ]  # fmt: skip
    start = pleas(models, symmetry, network, ratio=0.5, match="weights", squares=False).tensors
    first = np.hstack([start["conv2.weight"].reshape(len(start["conv2.bias"]), -1), start["conv2.bias"][:, None]])[
        : len(merged)
    ]
    target = y.transpose(0, 2, 3, 1).reshape(-1, len(merged))
    solution = first + np.linalg.lstsq(np.array(rows), target - np.array(rows) @ first.T, rcond=None)[0].T
    got = found.tensors["conv2.weight"][: len(merged)].reshape(len(merged), -1)
    np.testing.assert_allclose(got, solution[:, :-1], atol=1e-7)
    np.testing.assert_allclose(found.tensors["conv2.bias"][: len(merged)], solution[:, -1], atol=1e-7)


def test_partial_merging_block_by_block():
    """The blocks of the paper's table, by hand, for a layer of 4 inputs and 3 outputs."""
    models, symmetry, network = pair(lambda: mlp(2, 4, 3, 2), (30, 2))
    found = pleas(models, symmetry, network, widths="0=6,2=4", match="weights", squares=False)
    record = json.loads(found.files["pleas.json"])
    two = symmetry.apply(models[1], {n: np.array(o) for n, o in record["orders"].items()})
    a, b = models[0]["2.weight"], two["2.weight"]
    i, o = record["apart"]["0"], record["apart"]["2"]
    ri, ro = np.setdiff1d(range(4), i), np.setdiff1d(range(3), o)
    assert (len(i), len(o)) == (2, 1)
    expected = np.block([
        [(a[np.ix_(ro, ri)] + b[np.ix_(ro, ri)]) / 2, a[np.ix_(ro, i)] / 2, b[np.ix_(ro, i)] / 2],
        [a[np.ix_(o, ri)], a[np.ix_(o, i)], np.zeros((1, 2))],
        [b[np.ix_(o, ri)], np.zeros((1, 2)), b[np.ix_(o, i)]],
    ])  # fmt: skip
    np.testing.assert_array_equal(found.tensors["2.weight"], expected)
    assert found.tensors["2.bias"].shape == (4,) and found.tensors["4.weight"].shape == (2, 4)
    assert found.figures["parameters_result_dense"] == sum(t.size for t in found.tensors.values())
    zeros = 2 * (2 * 1)
    assert found.figures["parameters_result"] == found.figures["parameters_result_dense"] - zeros


@pytest.mark.parametrize("of", ["flops", "parameters"])
@pytest.mark.parametrize("budget", [1.0, 1.2, 1.55, 1.8])
def test_the_budget_is_kept_and_used(small, of, budget):
    models, symmetry, network = small
    found = pleas(models, symmetry, network, budget=budget, of=of, squares=False).figures
    share = found[f"{of}_result"] / found[f"{of}_one_network"]
    assert share <= budget * (1 + 1e-9)
    assert budget <= 1.2 or share > 1 + 0.7 * (budget - 1)


def test_the_solved_network_is_nearer_to_the_mean_than_the_averages():
    """Two networks that do alike things: one, and its noisy copy in other places."""
    (one, _), symmetry, network = pair(lambda: mlp(6, 16, 12, 3), (300, 6))
    rng = np.random.default_rng(0)
    two = {n: t + 0.5 * t.std() * rng.normal(size=t.shape) for n, t in one.items()}
    models = [one, symmetry.apply(two, symmetry.random(rng))]
    target = (outputs(network, models[0]) + outputs(network, models[1])) / 2

    def error(**more):
        return np.mean((outputs(network, pleas(models, symmetry, network, **more).tensors) - target) ** 2)

    for budget in (1.0, 1.5):
        assert error(budget=budget) < 0.9 * error(budget=budget, squares=False)
    assert error(budget=1.8) < error(budget=1.0)


def test_networks_with_heads_of_their_own():
    """Different numbers of classes: one trunk, a head each; kept apart whole, both networks are there exactly."""
    (module, one), (other, two) = weights(lambda: Cnn(3), 1), weights(lambda: Cnn(5), 2)
    inputs = np.random.default_rng(0).normal(size=CNN_INPUT)
    symmetry, _ = proved_symmetry(
        {n: t.shape for n, t in one.items()}, module=module.float(), example=torch.zeros(2, 1, 6, 6)
    )
    network = Network(module.double(), inputs)
    previous = None
    for ratio in (1.0, 0.5, 0.0):
        found = pleas([one, two], symmetry, network, ratio=ratio)
        heads = load(found.files["head-2.safetensors"])
        assert sorted(heads) == ["head.bias", "head.weight"]
        first, second = outputs(network, found.tensors), outputs(Network(other, inputs), {**found.tensors, **heads})
        errors = [
            np.mean((first - outputs(network, one)) ** 2),
            np.mean((second - outputs(Network(other, inputs), two)) ** 2),
        ]
        assert max(errors) < 1e-20 if ratio == 1 else max(errors) > 1e-6
        assert previous is None or sum(errors) > sum(previous)
        previous = errors
    named = pleas([one, weights(lambda: Cnn(3), 2)[1]], symmetry, network, ratio=1.0, heads="head")
    np.testing.assert_allclose(outputs(network, named.tensors), outputs(network, one), atol=1e-12)


def test_any_inputs_will_do():
    """Data-free: solved on noise, judged on other inputs."""
    models, symmetry, network = pair(lambda: mlp(6, 12, 12, 3), (300, 6))
    noise = Network(network.module, np.random.default_rng(9).normal(size=(500, 6)))
    assert any("random input" in n for n in pleas(models, symmetry, None, noise, ratio=0.5).notes)
    target = (outputs(network, models[0]) + outputs(network, models[1])) / 2
    solved, averaged = (
        np.mean((outputs(network, pleas(models, symmetry, None, noise, ratio=0.5, squares=s).tensors) - target) ** 2)
        for s in (True, False)
    )
    assert solved < averaged


def test_without_the_network_weights_decide(small):
    models, symmetry, _ = small
    found = pleas(models, symmetry, None, ratio=0.0)
    assert any("matched by their weights" in n for n in found.notes)
    assert any("nothing is solved for" in n for n in found.notes)
    expected = weight_matching(models, symmetry)
    assert all(np.array_equal(found.tensors[n], t) for n, t in expected.tensors.items())


def test_the_same_call_gives_the_same_bits(small):
    models, symmetry, network = small
    before = [{n: t.copy() for n, t in m.items()} for m in models]
    first, second = (pleas(models, symmetry, network, budget=1.5) for _ in range(2))
    assert first.files == second.files
    assert all(t.tobytes() == second.tensors[n].tobytes() for n, t in first.tensors.items())
    assert all(np.array_equal(t, m[n]) for b, m in zip(before, models, strict=True) for n, t in b.items())


@pytest.mark.parametrize("make", [Norms, Dense, lambda: ResNet(1, "A", (2, 4, 8), 4)], ids=["norms", "dense", "padded"])
def test_groups_that_cannot_be_widened_are_merged_whole_and_named(make):
    shape = (8, 1, 8, 8) if make is Norms else (8, 3, 8, 8)
    models, symmetry, network = pair(make, shape)
    found = pleas(models, symmetry, network, ratio=1.0)
    assert any(n.startswith("merged whole: ") for n in found.notes)
    widths = json.loads(found.files["pleas.json"])["widths"]
    assert any(before == after for before, after in widths.values())
    assert np.all(np.isfinite(outputs(network, found.tensors)))


def test_torch_modules_in_torch_modules_out():
    (one, _), (two, _), (five, _) = (weights(lambda c=c: Cnn(c), c) for c in (3, 4, 5))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=CNN_INPUT))
    with torch.no_grad():
        same = merged_modules(one, weights(Cnn, 9)[0], x, ratio=1.0)
        assert len(same.modules) == 1 and same.modules[0].conv1.out_channels == 10
        expected = (one(x) + weights(Cnn, 9)[0](x)) / 2
        torch.testing.assert_close(same.modules[0](x), expected, rtol=1e-10, atol=1e-12)
        apart = merged_modules(two, five, x.numpy(), budget=1.5)
        assert [m(x).shape[1] for m in apart.modules] == [4, 5]
        assert apart.modules[0].conv1.weight.equal(apart.modules[1].conv1.weight)
        noise = merged_modules(one, two, example=x[:1], ratio=0.3)
        assert any("random input" in n for n in noise.whole.notes)
    with pytest.raises(UsageError, match="needs inputs, or an example"):
        merged_modules(one, two)


def test_one_model_comes_back_and_bad_words_are_refused():
    models, symmetry, network = pair(lambda: mlp(6, 5, 4, 3), (20, 6))
    same = pleas(models[:1], symmetry, network).tensors
    assert all(np.array_equal(t, same[n]) and t is not same[n] for n, t in models[0].items())
    cases = [
        ({"widths": "0=7", "ratio": 0.5}, UsageError, "both given"),
        ({"widths": "0:7"}, UsageError, "'0:7' is not GROUP=N"),
        ({"widths": "0=99"}, UsageError, r"5 \(all merged\) <= 0 <= 10 \(all apart\)"),
        ({"widths": "zero=7"}, UsageError, "no group is called 'zero'"),
        ({"heads": "last"}, UsageError, "there is no layer 'last'"),
        ({"heads": "0"}, Refused, "makes the hidden units of group '0'"),
        ({"budget": 2.5}, UsageError, "1 <= budget <= 2"),
        ({"match": "luck"}, UsageError, "activations, weights"),
    ]
    for words, kind, said in cases:
        with pytest.raises(kind, match=said):
            pleas(models, symmetry, network, **words)
    with pytest.raises(UsageError, match="takes two models, 3 were given"):
        pleas([*models, models[0]], symmetry, network)
    with pytest.raises(Refused, match=r"only one of the networks has the tensor '4\.bias'"):
        pleas([models[0], {n: t for n, t in models[1].items() if n != "4.bias"}], symmetry, network)
    with pytest.raises(NettError):
        pleas([models[0], models[1] | {"0.weight": np.zeros((6, 6))}], symmetry, network)


def test_of_module_names_are_the_groups_names():
    assert [g.name for g in of_module(mlp(2, 4, 3, 2), torch.zeros(1, 2)).groups] == ["0", "2"]
