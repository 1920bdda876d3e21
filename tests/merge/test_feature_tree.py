"""The order in which units merge, against plain NumPy that computes every distance anew from the vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.core.symmetry import Group, Place, Symmetry
from nett.core.symmetry.folding import folds_of
from nett.merge.feature_tree import feature_tree, squared_distances
from nett.merge.feature_weights import features


def greedy(
    made: np.ndarray, read: np.ndarray, beta: float, max_ratio: float = 1.0, distance: str = "ward"
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """P38's loop on the weights that make ``[n, a]`` and read ``[n, b]`` each unit, every distance computed anew."""
    units = {i: [i] for i in range(len(made))}
    labels = np.arange(len(made))
    pairs = []

    def apart(one: list[int], other: list[int]) -> float:
        if distance == "paper":
            first = made[one].sum(0) - made[other].sum(0)
            return float(first @ first + np.sum((read[one].mean(0) - read[other].mean(0)) ** 2))
        both = np.column_stack([made, read])
        factor = 2 * len(one) * len(other) / (len(one) + len(other))
        return float(factor * np.sum((both[one].mean(0) - both[other].mean(0)) ** 2))

    while len(units) > 1 and len(pairs) < max_ratio * len(made):
        keys = sorted(units)
        d = {(i, j): apart(units[i], units[j]) for a, i in enumerate(keys) for j in keys[a + 1 :]}
        i, j = min(d, key=lambda p: (d[p], p))
        if d[i, j] > beta * max(d.values()):
            break
        units[i] += units.pop(j)
        labels[labels == j] = i
        pairs.append((i, j))
    return pairs, labels


def one_layer(
    rng: np.random.Generator, units: int
) -> tuple[Symmetry, dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A hidden layer: weights, bias, what reads it; and the weights that make and read each of its units."""
    tensors = {
        "fc1.weight": rng.normal(size=(units, 5)),
        "fc1.bias": rng.normal(size=units),
        "fc2.weight": rng.normal(size=(3, units)),
    }
    index = np.arange(units)[:, None]
    places = (
        Place("fc1.weight", 0, index, "producer"),
        Place("fc1.bias", 0, index, "producer"),
        Place("fc2.weight", 1, index, "consumer"),
    )
    symmetry = Symmetry((Group("fc1", "channel", places),), {n: t.shape for n, t in tensors.items()})
    return symmetry, tensors, (np.column_stack([tensors["fc1.weight"], tensors["fc1.bias"]]), tensors["fc2.weight"].T)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("distance", ["ward", "paper"])
def test_merges_are_those_of_the_plain_loop(seed: int, beta: float, distance: Any) -> None:
    rng = np.random.default_rng(seed)
    symmetry, tensors, (made, read) = one_layer(rng, int(rng.integers(2, 40)))
    tree = features(symmetry.groups[0], tensors, [], beta=1.0, distance=distance).tree
    pairs, labels = greedy(made, read, beta, distance=distance)
    merges = tree.merges(beta)
    assert [tuple(p) for p in tree.pairs[:merges].tolist()] == pairs
    assert np.array_equal(tree.labels(merges), np.unique(labels, return_inverse=True)[1])
    assert features(symmetry.groups[0], tensors, [], beta=beta, distance=distance).tree.merges(beta) == merges
    for ratio in (0.0, 0.3, 0.5):
        assert tree.merges(beta, ratio) == len(greedy(made, read, beta, ratio, distance)[0])


def test_the_first_merges_of_the_paper_as_its_repository_makes_them() -> None:
    """Two copies are equal to both distances; of three, the paper's sees two sums that differ from the third."""
    rng = np.random.default_rng(9)
    symmetry, tensors, _ = one_layer(rng, 5)
    for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
        moved = np.moveaxis(tensors[name], axis, 0)
        moved[3] = moved[4] = moved[0]
    assert features(symmetry.groups[0], tensors, [], beta=1e-9, distance="paper").tree.merges(1e-9) == 1
    assert features(symmetry.groups[0], tensors, [], beta=1e-9, distance="ward").tree.merges(1e-9) == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 3), st.integers(0, 2**31))
def test_ties_go_to_the_first_in_order(units: int, width: int, seed: int) -> None:
    """On a coarse grid with one coordinate at a time many distances tie exactly, until means are taken."""
    vectors = np.random.default_rng(seed).integers(-1, 2, (units, width)).astype(np.float64)
    gram = vectors @ vectors.T
    squared_distances(gram, np.unique(vectors, axis=0, return_inverse=True)[1].reshape(-1))
    tree = feature_tree("g", gram, beta=0.0)
    pairs, labels = greedy(vectors, vectors[:, :0], 0.0)
    assert [tuple(p) for p in tree.pairs.tolist()] == pairs
    assert np.array_equal(tree.labels(len(pairs)), np.unique(labels, return_inverse=True)[1])


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_copies_are_counted_exactly_whatever_their_number(copies: int) -> None:
    """Also where the outgoing weights were split: counted by the mean of their members, they stay equal."""
    rng = np.random.default_rng(copies)
    symmetry, tensors, _ = one_layer(rng, 8)
    order = np.concatenate([np.arange(8), np.repeat(3, copies), np.repeat(5, copies)])
    share = 1 / np.bincount(order)[order]
    wide = {
        "fc1.weight": tensors["fc1.weight"][order],
        "fc1.bias": tensors["fc1.bias"][order],
        "fc2.weight": tensors["fc2.weight"][:, order] * share,
    }
    index = np.arange(len(order))[:, None]
    places = tuple(Place(p.tensor, p.axis, index, p.role) for p in symmetry.groups[0].places)
    tree = features(Group("fc1", "channel", places), wide, [], beta=0.3).tree
    assert tree.merges(0.0) == tree.merges(1e-6) == 2 * copies
    assert np.array_equal(tree.labels(2 * copies), order)


def test_equal_producers_alone_and_equal_directions() -> None:
    rng = np.random.default_rng(3)
    symmetry, tensors, _ = one_layer(rng, 6)
    group = symmetry.groups[0]
    tensors["fc1.weight"][4], tensors["fc1.bias"][4] = tensors["fc1.weight"][1], tensors["fc1.bias"][1]
    assert features(group, tensors, [], beta=0.0).tree.merges(0.0) == 0
    assert features(group, tensors, [], beta=0.0, match="producers").tree.merges(0.0) == 1
    tensors["fc1.weight"][4] *= 3
    tensors["fc1.bias"][4] *= 3
    assert features(group, tensors, [], beta=1e-9, match="producers").tree.merges(1e-9) == 0
    found = features(group, tensors, [], beta=1e-9, match="producers", normalize=True)
    assert found.tree.merges(1e-9) == 1 and found.length is not None
    np.testing.assert_allclose(found.length[4] / found.length[1], 3, rtol=1e-12)
    tensors["fc2.weight"][:, 4] = tensors["fc2.weight"][:, 1] / 3
    assert features(group, tensors, [], beta=1e-9, normalize=True).tree.merges(1e-9) == 1


def test_a_folded_normalisation_is_its_scale_and_shift() -> None:
    rng = np.random.default_rng(4)
    mean, var, gamma, beta, bias = (rng.uniform(0.5, 2, 7) for _ in range(5))
    tensors = {
        "c.weight": rng.normal(size=(7, 2)), "c.bias": bias, "n.weight": gamma, "n.bias": beta, "n.running_mean": mean,
        "n.running_var": var,
    }  # fmt: skip
    (fold,) = folds_of(Symmetry((), {}, folds={"n": "c"}), tensors, {"n": 1e-3})
    x = rng.normal(size=2)
    plain = gamma * (tensors["c.weight"] @ x + bias - mean) / np.sqrt(var + 1e-3) + beta
    np.testing.assert_allclose(fold.scale * (tensors["c.weight"] @ x) + fold.shift, plain, rtol=1e-12)


def test_one_unit_and_units_that_are_all_equal() -> None:
    assert feature_tree("g", np.zeros((1, 1)), beta=1.0).merges(1.0) == 0
    gram = np.ones((5, 5))
    squared_distances(gram, np.zeros(5, np.int64))
    assert feature_tree("g", gram, beta=0.0).merges(0.0) == 4


# Clusters of 14 units of one hidden layer (5 inputs, 4 outputs, no bias), as the function self_merge_weight_get_dict of
# P38's repository (e282437) forms them; made by running it with torch's Tensor.cuda left out. beta, max_ratio -> clusters
# of more than one.
REPOSITORY = {
    (0.05, 1.0): [],
    (0.1, 1.0): [[2, 5]],
    (0.2, 1.0): [[2, 5], [4, 8]],
    (0.3, 1.0): [[0, 1, 6], [2, 5, 10], [3, 13], [4, 8], [7, 9, 11]],
    (0.5, 1.0): [[0, 1, 2, 5, 6, 10], [3, 13], [4, 7, 8, 9, 11, 12]],
    (0.8, 0.5): [[0, 1], [2, 5, 10], [3, 13], [4, 8], [7, 9, 11]],
}


@pytest.mark.parametrize(("beta", "max_ratio"), REPOSITORY)
def test_the_papers_distance_forms_the_clusters_of_its_repository(beta: float, max_ratio: float) -> None:
    rng = np.random.default_rng(38)
    tensors = {"a": np.round(rng.normal(size=(14, 5)), 3), "b": np.round(rng.normal(size=(4, 14)), 3)}
    index = np.arange(14)[:, None]
    group = Group("g", "channel", (Place("a", 0, index, "producer"), Place("b", 1, index, "consumer")))
    tree = features(group, tensors, [], beta=1.0, distance="paper").tree
    labels = tree.labels(tree.merges(beta, max_ratio))
    found = [np.flatnonzero(labels == k).tolist() for k in range(int(labels.max()) + 1)]
    assert sorted(c for c in found if len(c) > 1) == REPOSITORY[beta, max_ratio]
