"""Torch modules: the permuted module is the same function, and the groups are the right ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.fx")

from nett.core.symmetry import of_module, prove_module, proved_symmetry  # noqa: E402
from support import networks  # noqa: E402

MODULES = {
    "mlp": (lambda: networks.mlp(6, 12, 10, 3), (5, 6)),
    "option A": (lambda: networks.ResNet(2, "A"), (3, 3, 8, 8)),
    "convolved shortcuts": (lambda: networks.ResNet(1, "B"), (3, 3, 8, 8)),
    "norms": (networks.Norms, (4, 1, 8, 8)),
    "dense": (networks.Dense, (2, 3, 8, 8)),
    "odd": (networks.Odd, (5, 6)),
}


def scrambled(module, seed):
    """A module whose every number is random, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.3
                tensor.copy_(noise.abs() + 0.5 if "var" in name else noise + (tensor.dim() < 2) * 0.7)
    return module.double().eval()


@pytest.mark.parametrize("kind", MODULES)
def test_permuted_module_is_the_same_function(kind):
    make, shape = MODULES[kind]
    module = scrambled(make(), 0)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    symmetry = of_module(module, x)
    with torch.no_grad():
        before = module(x)
    tensors = {n: t.numpy() for n, t in module.state_dict().items()}
    kept = {n: t.copy() for n, t in tensors.items()}
    orders = symmetry.random(np.random.default_rng(2))
    assert any(np.any(o != np.arange(len(o))) for o in orders.values())
    permuted = symmetry.apply(tensors, orders)
    assert all(np.array_equal(tensors[n], kept[n]) for n in tensors)  # inputs untouched
    other = make().double().eval()
    other.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(t)) for n, t in permuted.items()})
    with torch.no_grad():
        after = other(x)
    assert float((before - after).abs().max()) < 1e-10 * float(before.abs().max())
    back = symmetry.apply(permuted, orders, inverse=True)
    assert all(np.array_equal(back[n], tensors[n]) for n in tensors)
    proved, proofs = prove_module(symmetry, module, x)
    assert len(proofs) == len(symmetry.groups) == len(proved.groups) > 0
    assert all(p.difference < 1e-12 and p.control > 1e-6 for p in proofs)


def sizes(module, shape):
    return {g.name: g.size for g in of_module(module, torch.zeros(shape)).groups}


def test_attention_of_torch():
    module = scrambled(networks.Attending(), 4)
    ids = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
    symmetry = of_module(module, ids)
    assert sorted(g.size for g in symmetry.groups) == [4, 8, 12]  # heads, neurons, residual dimensions
    heads = next(g for g in symmetry.groups if g.size == 4)
    assert {p.tensor: p.run for p in heads.places} == {
        "attention.in_proj_weight": 9, "attention.in_proj_bias": 9, "attention.out_proj.weight": 3,
    }  # fmt: skip
    proved, _ = prove_module(symmetry, module, ids)
    assert len(proved.groups) == 3
    tensors = {n: t.numpy() for n, t in module.state_dict().items()}
    permuted = symmetry.apply(tensors, symmetry.random(np.random.default_rng(0)))
    with torch.no_grad():
        before = module(ids)
        after = torch.func.functional_call(module, {n: torch.from_numpy(t) for n, t in permuted.items()}, (ids,))
    assert torch.allclose(before, after, rtol=1e-10)


def test_uses_that_no_rule_covers_are_named():
    class Uses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(1, 6, 3), torch.nn.Linear(6 * 4, 3)

        def forward(self, x):
            pooled, _ = torch.nn.functional.max_pool2d(self.conv(x), 2, return_indices=True)
            return self.fc(pooled.flatten(1))

    symmetry = of_module(Uses(), torch.zeros(1, 1, 6, 6))
    assert not symmetry.groups and len(symmetry.refused) == 1
    assert "max_pool2d" in symmetry.refused[0].why or "maxpool2d" in symmetry.refused[0].why


def test_groups_are_the_largest_there_are():
    assert sizes(networks.mlp(6, 12, 10, 3), (5, 6)) == {"0": 12, "2": 10}
    # One residual stream a stage; with option A the first stage's channels go on in the middle of the others', and
    # the channels around them are units of their own.
    assert sizes(networks.ResNet(1, "A"), (2, 3, 8, 8)) == {
        "conv1": 4, "layer1.0.conv1": 4, "layer2.0.conv1": 8, "layer2.0.conv2": 4, "layer3.0.conv1": 16,
        "layer3.0.conv2": 8,
    }  # fmt: skip
    assert sizes(networks.ResNet(1, "B"), (2, 3, 8, 8)) == {
        "conv1": 4, "layer1.0.conv1": 4, "layer2.0.conv1": 8, "layer2.0.conv2": 8, "layer3.0.conv1": 16,
        "layer3.0.conv2": 16,
    }  # fmt: skip
    assert sizes(networks.Norms(), (2, 1, 8, 8)) == {"conv1": 4, "conv1#2": 4, "fc1": 12}


def test_places_of_flattened_channels_and_padded_shortcuts():
    symmetry = of_module(networks.Norms(), torch.zeros(2, 1, 8, 8))
    place = next(p for p in symmetry.group("conv1#2").places if p.tensor == "fc1.weight")
    assert (place.axis, place.role, place.run) == (1, "consumer", 16)
    assert np.array_equal(place.index, np.arange(64, 128).reshape(4, 16))
    symmetry = of_module(networks.ResNet(1, "A"), torch.zeros(2, 3, 8, 8))
    found = {p.tensor: p.index[:, 0].tolist() for p in symmetry.group("conv1").places}
    assert found["layer2.0.conv2.weight"] == [2, 3, 4, 5]  # 2 + 4 + 2
    assert found["layer3.0.conv2.weight"] == [6, 7, 8, 9]  # 4 + (2 + 4 + 2) + 4
    roles = {p.tensor: p.role for p in symmetry.group("layer1.0.conv1").places}
    assert roles["layer1.0.conv1.weight"] == "producer"
    assert roles["layer1.0.bn1.running_var"] == "state"
    assert roles["layer1.0.conv2.weight"] == "consumer"
    assert symmetry.group("layer1.0.conv1").through == ("batchnorm2d", "relu")
    assert symmetry.folds["layer2.0.bn2"] == "layer2.0.conv2"
    assert "linear.bias" in symmetry.uncovered


def test_columns_of_a_grouped_convolution_are_moved_in_their_own_rows():
    symmetry = of_module(networks.Dense(), torch.zeros(2, 3, 8, 8))
    place = next(p for p in symmetry.group("c2").places if p.tensor == "grouped.weight")
    assert place.where == ((0, 9, 12),)  # the last of four groups reads channels 15 to 19, all of them made by c2
    assert place.index[:, 0].tolist() == [0, 1, 2, 3, 4]
    runs = {p.tensor: p.run for p in symmetry.group("grouped").places}
    assert runs == {
        "grouped.weight": 1, "grouped.bias": 1, "depthwise.weight": 2, "depthwise.bias": 2, "pointwise.weight": 2,
    }  # fmt: skip


def test_what_no_rule_knows_stays_and_is_named():
    symmetry = of_module(networks.Odd(), torch.zeros(5, 6))
    assert {g.name: g.size for g in symmetry.groups} == {"fc1": 8, "fc2": 10}
    assert [(r.name, "sort" in r.why) for r in symmetry.refused] == [("sort", True)]
    gated = next(p for p in symmetry.group("fc1").places if p.tensor == "fc1.weight")
    assert gated.index.tolist() == [[i, i + 8] for i in range(8)]
    assert "mixed" in {p.tensor for p in symmetry.group("fc2").places}
    assert 1 not in symmetry.axes("mixed")


def test_tied_weights_are_permuted_under_both_names():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 8)
            self.back = torch.nn.Linear(8, 8)
            self.again = torch.nn.Linear(8, 8)
            self.again.weight = self.back.weight
            self.out = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.out(torch.relu(self.again(torch.relu(self.back(torch.relu(self.inner(x)))))))

    module, x = scrambled(Tied(), 3), torch.randn(2, 4, dtype=torch.float64)
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    symmetry, _ = proved_symmetry(shapes, module=module, example=x)
    # back feeds again through the same matrix, so the units of all three layers are one kind
    assert {g.name: g.size for g in symmetry.groups} == {"inner": 8}
    names = [p.tensor for p in symmetry.group("inner").places if "weight" in p.tensor]
    assert names.count("back.weight") == names.count("again.weight") == 2
    del shapes["again.weight"]
    symmetry, _ = proved_symmetry(shapes, module=module, example=x)
    assert {p.tensor for p in symmetry.group("inner").places}.isdisjoint({"again.weight"})
