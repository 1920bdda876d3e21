"""Networks of other widths: plain NumPy for every axis, and torch modules that run with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nett.core.errors import Refused
from nett.core.symmetry import Group, Place, Symmetry, of_module
from nett.core.symmetry.fitting import fitted
from nett.core.symmetry.widths import GroupMap, UnitMap, resized
from support.networks import Dense, ResNet, mlp


def one_group(*places: Place, shapes: dict[str, tuple[int, ...]]) -> Symmetry:
    return Symmetry((Group("g", "channel", places),), shapes)


def place(tensor: str, axis: int, index: list[list[int]], role: str = "producer") -> Place:
    return Place(tensor, axis, np.array(index), role)  # type: ignore[arg-type]


def matrices(rng: np.random.Generator, new: int, old: int) -> tuple[np.ndarray, np.ndarray, GroupMap]:
    made, read = (rng.normal(size=(new, old)) * (rng.random((new, old)) < 0.6) for _ in range(2))
    return made, read, GroupMap(UnitMap.of_matrix(made), UnitMap.of_matrix(read))


@pytest.mark.parametrize("new", [1, 3, 5, 8])
def test_rows_and_columns_are_the_products_with_the_matrices(new: int) -> None:
    rng = np.random.default_rng(new)
    made, read, maps = matrices(rng, new, 5)
    tensors = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=5), "c": rng.normal(size=(2, 5, 3))}
    shapes = {n: t.shape for n, t in tensors.items()}
    one = [[i] for i in range(5)]
    symmetry = one_group(place("a", 0, one), place("b", 0, one), place("c", 1, one, "consumer"), shapes=shapes)
    after, found = resized(symmetry, tensors, {"g": maps})
    np.testing.assert_allclose(found["a"], made @ tensors["a"], atol=1e-12)
    np.testing.assert_allclose(found["b"], made @ tensors["b"], atol=1e-12)
    np.testing.assert_allclose(found["c"], np.einsum("no,aob->anb", read, tensors["c"]), atol=1e-12)
    assert after.shapes == {n: t.shape for n, t in found.items()} and after.group("g").size == new


@pytest.mark.parametrize("new", [2, 3, 5])
def test_a_flattened_axis_and_the_halves_of_a_gate_stay_in_order(new: int) -> None:
    """Channels of two positions each, then a row that is not theirs; and gate and up, one after the other."""
    rng = np.random.default_rng(new)
    made, read, maps = matrices(rng, new, 3)
    tensors = {"flat": rng.normal(size=(2, 7)), "gated": rng.normal(size=(6, 2))}
    symmetry = one_group(
        place("gated", 0, [[0, 3], [1, 4], [2, 5]]),
        place("flat", 1, [[0, 1], [2, 3], [4, 5]], "consumer"),
        shapes={"flat": (2, 7), "gated": (6, 2)},
    )
    after, found = resized(symmetry, tensors, {"g": maps})
    expected = np.einsum("no,aor->anr", read, tensors["flat"][:, :6].reshape(2, 3, 2)).reshape(2, -1)
    np.testing.assert_allclose(found["flat"], np.concatenate([expected, tensors["flat"][:, 6:]], axis=1), atol=1e-12)
    halves = [made @ tensors["gated"][:3], made @ tensors["gated"][3:]]
    np.testing.assert_allclose(found["gated"], np.concatenate(halves), atol=1e-12)
    again = after.group("g").having("producer")[0].units(found["gated"])
    np.testing.assert_allclose(again, np.concatenate(halves, axis=1), atol=1e-12)


def test_two_groups_on_one_axis_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(3, 3)), "c": rng.normal(size=(4, 5))}
    groups = (
        Group("a", "channel", (place("a", 0, [[0], [1]]), place("c", 1, [[0], [1]], "consumer"))),
        Group("b", "channel", (place("b", 0, [[0], [1], [2]]), place("c", 1, [[2], [3], [4]], "consumer"))),
    )
    symmetry = Symmetry(groups, {n: t.shape for n, t in tensors.items()})
    total = UnitMap.of_matrix(np.ones((1, 2)))
    widened = UnitMap.of_matrix(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2.0]]))
    _, found = resized(symmetry, tensors, {"a": GroupMap(total, total), "b": GroupMap(widened, widened)})
    c = tensors["c"]
    np.testing.assert_array_equal(found["c"], np.column_stack([c[:, 0] + c[:, 1], c[:, 2:], 2 * c[:, 4]]))
    np.testing.assert_array_equal(found["b"], np.vstack([tensors["b"], 2 * tensors["b"][2]]))


def test_weight_one_is_a_copy_and_types_stay() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        values = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype)
        symmetry = one_group(place("a", 0, [[0], [1], [2], [3]]), shapes={"a": (4, 3)})
        same = UnitMap.of_labels(np.array([1, 0, 3, 2]), np.ones(4))
        _, found = resized(symmetry, {"a": values}, {"g": GroupMap(same, same)})
        assert found["a"].dtype == dtype and np.array_equal(found["a"], values[[1, 0, 3, 2]])
    empty = UnitMap.of_matrix(np.zeros((2, 4)))
    _, found = resized(symmetry, {"a": values}, {"g": GroupMap(empty, empty)})
    assert np.array_equal(found["a"], np.zeros((2, 3)))


@pytest.mark.parametrize("network", ["mlp", "resnet", "dense"])
@pytest.mark.parametrize("wider", [-1, 2])
def test_a_module_runs_with_dead_units_more_or_less(network: str, wider: int) -> None:
    """A unit that nothing reads is left out, or two that make nothing are added: the same function."""
    torch.manual_seed(0)
    module, shape = {
        "mlp": (mlp(6, 8, 7, 4), (5, 6)),
        "resnet": (ResNet(option="B"), (2, 3, 8, 8)),
        "dense": (Dense(), (2, 3, 8, 8)),
    }[network]
    module = module.double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    symmetry = of_module(module, x)
    tensors = {n: t.numpy().copy() for n, t in module.state_dict().items()}
    maps = {}
    for group in symmetry.groups:
        if any(p.where for p in group.places) or (network == "dense" and group.size == 3):
            continue  # grouped convolutions
        for one in group.having("consumer"):
            moved = np.moveaxis(tensors[one.tensor], one.axis, 0)
            moved[one.index[-1]] = 0
        square = np.eye(group.size + wider, group.size)
        maps[group.name] = GroupMap(UnitMap.of_matrix(square), UnitMap.of_matrix(square))
    assert maps
    expected = fitted(module, tensors)(x)
    _, found = resized(symmetry, tensors, maps)
    made = fitted(module, found)
    assert made is not module and {n: t.shape for n, t in made.state_dict().items()} == {
        n: t.shape for n, t in found.items()
    }
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)


def test_shared_tensors_stay_shared_and_unknown_ones_are_refused() -> None:
    module = mlp(4, 4, 4)
    module[2].weight = module[0].weight
    made = fitted(module, {n: t.double() for n, t in module.state_dict().items()})
    assert made[2].weight is made[0].weight and made[0].weight.dtype == torch.float32
    with pytest.raises(Refused, match=r"no tensor 'nothing.weight'"):
        fitted(module, {"nothing.weight": torch.zeros(1)})


def test_what_the_code_fixes_is_refused() -> None:
    half = Place("a", 0, np.arange(4)[:, None], "producer", ((1, 0, 2),))
    maps = {"g": GroupMap(UnitMap.of_matrix(np.eye(3, 4)), UnitMap.of_matrix(np.eye(3, 4)))}
    with pytest.raises(Refused, match="grouped convolution"):
        resized(one_group(half, shapes={"a": (4, 4)}), {"a": np.zeros((4, 4))}, maps)
    inside = Symmetry((Group("g", "head", (place("a", 0, [[0], [1]]),), parent="h"),), {"a": (2, 1)})
    with pytest.raises(Refused, match="attention heads"):
        resized(inside, {"a": np.zeros((2, 1))}, maps)
    with pytest.raises(Refused, match="names a unit that group 'g' of 2 has not"):
        resized(one_group(place("a", 0, [[0], [1]]), shapes={"a": (2, 1)}), {"a": np.zeros((2, 1))}, maps)
