"""Linear layers in bit planes."""

import numpy as np
import pytest
import torch
from torch import nn

import nett
from nett.core.errors import Refused, UsageError
from nett.weights.bipolar_linear import NORMAL, BipolarLinear, input_scale


def rounded(x, step, bits):
    """The nearest odd multiples of each row's step, float64 NumPy."""
    wide = step.double().numpy()[:, None]
    floors = np.floor(x.double().numpy() / (2 * wide))
    return (2 * np.clip(floors, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 1) * wide


@pytest.mark.parametrize(("bits", "activations", "group"), [(2, 2, 0), (1, 8, 64), (3, 4, 24), (8, 8, 32)])
@pytest.mark.parametrize("rule", ["normal", "largest"])
def test_the_layer_multiplies_what_its_numbers_stand_for(bits, activations, group, rule):
    torch.manual_seed(bits)
    linear = nn.Linear(100, 13)
    layer = BipolarLinear.of(linear, bits=bits, activations=activations, group=group, rule=rule)
    x = torch.randn(3, 4, 100)
    found = layer(x)
    assert found.shape == (3, 4, 13)
    rows = x.reshape(-1, 100)
    step = input_scale(rows, activations, rule)
    expected = rounded(rows, step, activations) @ layer.dense().double().numpy().T + linear.bias.detach().numpy()
    np.testing.assert_allclose(found.reshape(-1, 13).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_eight_bits_are_near_the_layer_itself():
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 64, bias=False), torch.randn(16, 256)
    found = BipolarLinear.of(linear, bits=8, activations=8, group=64)(x)
    expected = linear(x).detach()
    assert float((found - expected).norm() / expected.norm()) < 0.012


def test_types_of_inputs_are_kept():
    layer = BipolarLinear.of(nn.Linear(64, 8), bits=2, activations=4)
    assert layer(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16
    assert layer(torch.randn(0, 64)).shape == (0, 8)
    assert torch.isfinite(layer(torch.zeros(2, 64))).all()


def test_the_state_holds_the_bits_and_loads():
    """64 rows of 128 columns in 2 bits: 2 KB of planes, and a scale a row."""
    layer = BipolarLinear.of(nn.Linear(128, 64), bits=2, activations=2)
    state = layer.state_dict()
    assert state["planes"].nbytes == 128 * 64 * 2 // 8
    assert state["scale"].nbytes == 64 * 4
    other = BipolarLinear(128, 64, bits=2, activations=2, bias=True)
    other.load_state_dict(state)
    x = torch.randn(5, 128)
    assert torch.equal(layer(x), other(x))


def test_codes_of_the_method_are_taken():
    weight = torch.randn(10, 96)
    found = nett.weights.bipolar_int(weight, bits=3, group=32)
    layer = BipolarLinear(96, 10, bits=3, activations=8, group=32)
    layer.take(found.codes, found.scale)
    assert torch.equal(layer.dense(), found.dense())
    with pytest.raises(UsageError, match="do not fit"):
        layer.take(found.codes, found.scale[:, :1])


def test_scales_of_inputs():
    """``normal`` is the table's number times the root mean square, unless the largest asks for less."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4096)).astype(np.float32))
    rms = np.sqrt((x.numpy() ** 2).mean(1))
    np.testing.assert_allclose(input_scale(x, 2, "normal").numpy(), NORMAL[1] * rms, rtol=1e-5)
    np.testing.assert_allclose(input_scale(x, 2, "largest").numpy(), np.abs(x.numpy()).max(1) / 3, rtol=1e-6)
    for bits, same in ((1, "normal"), (2, "normal"), (3, "largest"), (8, "largest")):
        assert torch.equal(input_scale(x, bits, "auto"), input_scale(x, bits, same))
    flat = torch.ones(1, 8)
    assert float(input_scale(flat, 2, "normal")) == pytest.approx(1 / 3)


def test_a_module_gets_planes_for_its_linear_layers():
    shared = nn.Linear(64, 64)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), shared, shared, nn.ModuleDict({"lm_head": nn.Linear(64, 4)}))
    nett.weights.as_bipolar(model, bits=2, activations=8, skip=["*lm_head"])
    assert isinstance(model[0], BipolarLinear)
    assert model[2] is model[3]
    assert isinstance(model[4]["lm_head"], nn.Linear)
    assert model[:4](torch.randn(2, 16)).shape == (2, 64)


def test_a_module_without_linear_layers_is_refused():
    with pytest.raises(Refused, match="no linear layer"):
        nett.weights.as_bipolar(nn.Sequential(nn.ReLU()))
