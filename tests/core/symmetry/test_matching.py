"""Weight matching: the exact optimum where it can be known, planted permutations found again, never a step down."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from nett.core.symmetry import Group, Place, Symmetry
from nett.core.symmetry.matching import align, align_all
from support.symmetries import column, mlp, numbers


def product(one, other):
    return sum(float(np.vdot(one[n].astype(np.float64), other[n].astype(np.float64))) for n in one)


@pytest.mark.parametrize("units", [2, 4, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_hidden_layer_is_matched_best_of_all(units, seed):
    symmetry = mlp(5, units, 3)
    a, b = numbers(symmetry, seed), numbers(symmetry, seed + 100)
    found = align(a, b, symmetry)
    best = max(
        product(a, {"0.weight": b["0.weight"][list(p)], "0.bias": b["0.bias"][list(p)],
                    "1.weight": b["1.weight"][:, list(p)], "1.bias": b["1.bias"]})
        for p in permutations(range(units))
    )  # fmt: skip
    placed = symmetry.apply(b, found.orders)
    assert product(a, placed) == pytest.approx(best, rel=1e-6)
    # The output's bias is moved by no permutation and is not counted.
    assert found.objective[-1] == pytest.approx(best - product({"b": a["1.bias"]}, {"b": b["1.bias"]}), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_sweep_gains_and_the_objective_is_the_inner_product(seed):
    symmetry = mlp(7, 20, 30, 20, 4)
    a, b = numbers(symmetry, seed, np.float64), numbers(symmetry, seed + 50, np.float64)
    found = align(a, b, symmetry, seed=seed)
    assert len(found.objective) > 2
    assert all(y > x for x, y in pairwise(found.objective))
    moved = {n for n in a if n != "3.bias"}
    placed = symmetry.apply(b, found.orders)
    assert found.objective[0] == pytest.approx(product({n: a[n] for n in moved}, {n: b[n] for n in moved}), abs=1e-9)
    assert found.objective[-1] == pytest.approx(
        product({n: a[n] for n in moved}, {n: placed[n] for n in moved}), rel=1e-9
    )
    again = align(a, b, symmetry, seed=seed)
    assert all(np.array_equal(found.orders[g], again.orders[g]) for g in found.orders)
    # A local optimum: no single group has a better order.
    assert align(a, placed, symmetry, seed=seed + 1).objective == (pytest.approx(found.objective[-1]),)


def test_a_permuted_copy_is_found_again():
    symmetry = mlp(7, 20, 30, 4)
    a = numbers(symmetry, 3)
    b = symmetry.apply(a, symmetry.random(np.random.default_rng(4)))
    placed = symmetry.apply(b, align(a, b, symmetry).orders)
    assert all(np.array_equal(placed[n], a[n]) for n in a)


def test_inputs_are_not_written_to():
    symmetry = mlp(4, 6, 2)
    a, b = numbers(symmetry, 0), numbers(symmetry, 1)
    for values in (*a.values(), *b.values()):
        values.flags.writeable = False
    align(a, b, symmetry)
    align_all([a, b, numbers(symmetry, 2)], symmetry)


def test_several_permuted_copies_come_together():
    symmetry = mlp(7, 20, 30, 4)
    a = numbers(symmetry, 5)
    rng = np.random.default_rng(6)
    copies = [a, *(symmetry.apply(a, symmetry.random(rng)) for _ in range(3))]
    found = align_all(copies, symmetry, seed=1)
    placed = [symmetry.apply(m, f.orders) for m, f in zip(copies, found, strict=True)]
    assert all(np.array_equal(p[n], placed[0][n]) for p in placed for n in a)
    assert found[0].objective[-1] == pytest.approx(6 * product(*[{n: a[n] for n in a if n != "2.bias"}] * 2), rel=1e-6)


def test_several_networks_never_fall_apart():
    symmetry = mlp(6, 16, 16, 3)
    models = [numbers(symmetry, s, np.float64) for s in range(4)]
    found = align_all(models, symmetry, seed=2)
    objective = found[0].objective
    assert len(objective) > 1 and all(y > x for x, y in pairwise(objective))
    placed = [symmetry.apply(m, f.orders) for m, f in zip(models, found, strict=True)]
    names = [n for n in placed[0] if n != "2.bias"]
    pairs = sum(
        product({n: placed[i][n] for n in names}, {n: placed[j][n] for n in names}) for i in range(4) for j in range(i)
    )
    assert objective[-1] == pytest.approx(pairs, rel=1e-9)


def test_an_axis_that_meets_itself_never_makes_it_worse():
    """h + W h: the same units along both axes of W, where one assignment is only an approximation."""
    n = 8
    places = (
        Place("A", 0, column(n), "producer"), Place("W", 0, column(n), "producer"), Place("W", 1, column(n), "consumer"),
        Place("B", 1, column(n), "consumer"),
    )  # fmt: skip
    symmetry = Symmetry((Group("h", "unit", places),), {"A": (n, 2), "W": (n, n), "B": (2, n)})
    planted = 0
    for seed in range(8):
        a, b = numbers(symmetry, seed, np.float64), numbers(symmetry, seed + 20, np.float64)
        found = align(a, b, symmetry)
        assert product(a, symmetry.apply(b, found.orders)) == pytest.approx(found.objective[-1])
        assert found.objective[-1] >= product(a, b) - 1e-12
        copy = symmetry.apply(a, symmetry.random(np.random.default_rng(seed)))
        placed = symmetry.apply(copy, align(a, copy, symmetry).orders)
        planted += all(np.array_equal(placed[k], a[k]) for k in a)
    assert planted >= 6


@pytest.mark.parametrize(
    ("kind", "named", "more"),
    [
        ("llama", "LlamaForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2}),
        ("bert", "BertForSequenceClassification", {}),
    ],
)
def test_heads_and_their_insides_are_found_again(kind, named, more):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from nett.core.symmetry import of_config, small_model

    config = transformers.AutoConfig.for_model(kind, **more).to_dict() | {"architectures": [named]}
    model = small_model(config)
    tensors = {n: t.numpy().astype(np.float32) for n, t in model.state_dict().items() if t.is_floating_point()}
    rng = np.random.default_rng(0)
    tensors = {n: t + rng.normal(size=t.shape).astype(np.float32) * 0.05 for n, t in tensors.items()}
    settings = model.config.to_dict() | {"architectures": [named]}
    symmetry = of_config(settings, {n: t.shape for n, t in tensors.items()})
    assert torch is not None
    copy = symmetry.apply(tensors, symmetry.random(np.random.default_rng(1)))
    placed = symmetry.apply(copy, align(tensors, copy, symmetry).orders)
    assert all(np.array_equal(placed[n], tensors[n]) for n in tensors)


def test_a_residual_network_is_found_again():
    torch = pytest.importorskip("torch")
    from nett.core.symmetry import of_module
    from support import networks

    module = networks.ResNet(1, "A")
    symmetry = of_module(module, torch.zeros(1, 3, 8, 8))
    rng = np.random.default_rng(2)
    tensors = {n: rng.normal(size=t.shape).astype(np.float32) for n, t in module.state_dict().items()}
    copy = symmetry.apply(tensors, symmetry.random(rng))
    placed = symmetry.apply(copy, align(tensors, copy, symmetry).orders)
    assert all(np.array_equal(placed[n], tensors[n]) for n in tensors)


@pytest.mark.slow
def test_two_wide_networks_in_five_seconds():
    """Three layers of 1024 units, 784 inputs, 10 classes: 4.0 CPU seconds when this was written, on random weights, the slowest"""
    import time

    symmetry = mlp(784, 1024, 1024, 1024, 10)
    a, b = numbers(symmetry, 0), numbers(symmetry, 1)
    began = time.process_time()
    align(a, b, symmetry)
    assert time.process_time() - began < 5
