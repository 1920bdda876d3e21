"""Groups on plain arrays, and what is said about wrong input."""

from __future__ import annotations

import numpy as np
import pytest

from nett.core.errors import NettError, Refused, UsageError
from nett.core.symmetry import Group, Place, Symmetry, network, proved_symmetry


def column(n):
    return np.arange(n)[:, None]


def two_layers(n=4):
    """y = B relu(A x)."""
    group = Group("hidden", "neuron", (Place("A", 0, column(n), "producer"), Place("B", 1, column(n), "consumer")))
    return Symmetry((group,), {"A": (n, 3), "B": (2, n)})


def test_unit_order_i_goes_to_place_i():
    a, b = np.arange(12.0).reshape(4, 3), np.arange(8.0).reshape(2, 4)
    order = np.array([2, 0, 3, 1])
    found = two_layers().apply({"A": a, "B": b}, {"hidden": order})
    assert np.array_equal(found["A"], a[order]) and np.array_equal(found["B"], b[:, order])
    back = two_layers().apply(found, {"hidden": order}, inverse=True)
    assert np.array_equal(back["A"], a) and np.array_equal(back["B"], b)


def test_runs_and_windows():
    values = np.arange(24.0).reshape(4, 6)
    place = Place("W", 1, np.array([[0, 1], [2, 3], [4, 5]]), "consumer", ((0, 1, 3),))
    place.permute(moved := values.copy(), np.array([1, 2, 0]))
    expected = values.copy()
    expected[1:3] = values[1:3][:, [2, 3, 4, 5, 0, 1]]
    assert np.array_equal(moved, expected)
    assert np.array_equal(place.units(values)[1], values[1:3, 2:4].T.reshape(-1))


def test_inside_of_a_unit_before_the_unit():
    """Two heads of two dimensions: the order within head 0 goes with it when the heads change places."""
    inner = Group("heads.0", "dimension", (Place("V", 0, np.array([[0], [1]]), "producer"),), (), "heads", 0)
    outer = Group("heads", "head", (Place("V", 0, np.array([[0, 1], [2, 3]]), "producer"),))
    symmetry = Symmetry((inner, outer), {"V": (4,)})
    orders = {"heads.0": np.array([1, 0]), "heads": np.array([1, 0])}
    found = symmetry.apply({"V": np.array([10, 11, 20, 21])}, orders)
    assert found["V"].tolist() == [20, 21, 11, 10]
    assert symmetry.apply(found, orders, inverse=True)["V"].tolist() == [10, 11, 20, 21]


def test_wrong_orders_names_and_shapes_are_said():
    symmetry, good = two_layers(), {"A": np.zeros((4, 3)), "B": np.zeros((2, 4))}
    with pytest.raises(UsageError, match=r"no group is called 'hiden'. Did you mean 'hidden'"):
        symmetry.apply(good, {"hiden": np.arange(4)})
    with pytest.raises(UsageError, match="no permutation of its 4 units"):
        symmetry.apply(good, {"hidden": np.array([0, 0, 1, 2])})
    with pytest.raises(NettError, match=r"'A' has shape \[5, 3\], but the symmetry is that of \[4, 3\]"):
        symmetry.apply(good | {"A": np.zeros((5, 3))}, {})
    with pytest.raises(NettError, match="'B' is missing"):
        symmetry.apply({"A": good["A"]}, {})


def test_tensors_alone_are_refused_with_what_can_be_done():
    with pytest.raises(Refused, match=r"--net FILE.py:FUNCTION --input 1x3x32x32"):
        proved_symmetry({"conv1.weight": (4, 3, 3, 3)})


def test_code_that_names_nothing(tmp_path):
    (tmp_path / "nets.py").write_text("def seven():\n    return 7\n")
    with pytest.raises(UsageError, match="names no function"):
        network("nets")
    with pytest.raises(UsageError, match=r"no function 'sevn'. Did you mean 'seven'"):
        network(f"{tmp_path}/nets.py:sevn")
    (tmp_path / "more.py").write_text(
        "from torch import nn\nfrom json import dumps\ndef net():\n    return nn.Linear(2, 2)\n"
    )
    with pytest.raises(UsageError, match=r"no function 'zzz'. Known: net\.$"):
        network(f"{tmp_path}/more.py:zzz")
    with pytest.raises(UsageError, match="gave a int, not a torch module"):
        network(f"{tmp_path}/nets.py:seven")
    with pytest.raises(UsageError, match="there is no file"):
        network(f"{tmp_path}/none.py:seven")


def test_a_module_of_other_tensors_is_refused():
    torch = pytest.importorskip("torch")
    from support import networks

    module, x = networks.mlp(3, 4, 2), torch.zeros(1, 3)
    shapes = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    with pytest.raises(Refused, match=r"has no tensor '0.weigt'. Did you mean '0.weight'"):
        proved_symmetry(shapes | {"0.weigt": (1,)}, module=module, example=x)
    with pytest.raises(Refused, match=r"has shape \[5, 3\], in the module \[4, 3\]"):
        proved_symmetry(shapes | {"0.weight": (5, 3)}, module=module, example=x)
    with pytest.raises(Refused, match=r"'2.bias' of the module is missing"):
        proved_symmetry({n: s for n, s in shapes.items() if n != "2.bias"}, module=module, example=x)
    with pytest.raises(UsageError, match="--input"):
        proved_symmetry(shapes, module=module)
    with pytest.raises(Refused, match="no hidden units"):
        proved_symmetry({"weight": (2, 3), "bias": (2,)}, module=torch.nn.Linear(3, 2), example=x)


def test_control_flow_is_refused():
    torch = pytest.importorskip("torch")

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(Refused, match=r"torch.fx cannot follow this module"):
        proved_symmetry({}, module=Branching(), example=torch.zeros(2))
