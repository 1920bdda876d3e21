"""AWQ and SmoothQuant: what the kernels promise, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import nett
from nett.weights.protocol import Quantised, Scaled
from nett.weights.scaling import tied
from support.tensors import Array


def given(outliers: bool = True) -> tuple[list[torch.Tensor], Array, torch.Tensor]:
    """Two matrices of 64 columns, inputs of which a few are far larger than the others, their second moments."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 64)) @ (np.eye(64) + 0.2 * rng.normal(size=(64, 64)))
    if outliers:
        inputs[:, [3, 17, 40]] *= 30
    weights = [torch.from_numpy(rng.normal(size=(n, 64)).astype(np.float32)) for n in (24, 10)]
    return weights, inputs, torch.from_numpy((inputs.T @ inputs / 400).astype(np.float32))


def error(weights: list[torch.Tensor], answers: list[Any], inputs: Array, scale: Array | None) -> float:
    """Squared change of the outputs on the inputs themselves."""
    total = 0.0
    for weight, answer in zip(weights, answers, strict=True):
        value = answer.dense().double().numpy()
        gap = (value if scale is None else value / scale) - weight.double().numpy()
        total += float(((inputs @ gap.T) ** 2).mean())
    return total


def test_less_error_than_rounding_where_inputs_have_outliers() -> None:
    weights, inputs, gram = given()
    size = torch.from_numpy(np.abs(inputs).mean(0).astype(np.float32))
    answer = nett.weights.awq(weights, gram, size, torch.arange(64), bits=4, group=32, search=False)
    assert isinstance(answer, Scaled)
    plain = nett.weights.awq(weights, gram, size, None, bits=4, group=32)
    rtn = [nett.weights.rtn(w, bits=4, group=32) for w in weights]
    mine = error(weights, list(answer.answers), inputs, answer.scale.double().numpy())
    unscaled, rounded = error(weights, plain, inputs, None), error(weights, rtn, inputs, None)
    assert mine < 0.5 * rounded and unscaled < rounded
    largest = answer.scale.argsort(descending=True)[:3]
    assert sorted(largest.tolist()) == [3, 17, 40]


def test_never_worse_than_rounding() -> None:
    for outliers in (False, True):
        for bits in (2, 3, 8):
            weights, inputs, gram = given(outliers)
            size = torch.from_numpy(np.abs(inputs).mean(0).astype(np.float32))
            answer = nett.weights.awq(weights, gram, size, torch.arange(64) // 4, bits=bits, group=32, grid=5)
            scale = answer.scale.double().numpy() if isinstance(answer, Scaled) else None
            answers = list(answer.answers) if isinstance(answer, Scaled) else answer
            rtn = [nett.weights.rtn(w, bits=bits, group=32) for w in weights]
            assert error(weights, answers, inputs, scale) <= error(weights, rtn, inputs, None) * (1 + 1e-4)


def test_tied_is_the_geometric_mean() -> None:
    values, source = torch.tensor([1.0, 4.0, 9.0, 2.0]), torch.tensor([1, 1, 0, 3])
    assert torch.allclose(tied(values, source), torch.tensor([2.0, 2.0, 9.0, 2.0]))


def test_smoothquant_is_the_formula() -> None:
    weights, inputs, _ = given()
    largest = np.abs(inputs).max(0)
    answer = nett.weights.smoothquant(
        weights, torch.from_numpy(largest.astype(np.float32)), torch.arange(64), strength=0.7
    )
    columns = np.abs(np.concatenate([w.double().numpy() for w in weights])).max(0)
    scale = largest**0.7 / columns**0.3
    assert isinstance(answer, Scaled) and np.allclose(answer.scale.numpy(), scale, rtol=1e-4)
    for weight, one in zip(weights, answer.answers, strict=True):
        assert isinstance(one, Quantised) and one.bits == one.activations == 8 and one.scale.shape == (len(weight), 1)
        scaled = weight.double().numpy() * scale
        step = np.abs(scaled).max(1, keepdims=True) / 127.5
        assert np.abs(one.dense().numpy() - scaled).max() <= 0.501 * step.max()
        assert np.allclose(one.scale.numpy(), step, rtol=1e-4)


def test_int8_dynamic_rounds_each_row() -> None:
    weight = torch.tensor([[1.0, -0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = nett.weights.int8_dynamic(weight)
    assert found.codes.tolist() == [[127, -64, 32, 0], [0, 0, 0, 0]]  # 127.5, -63.75, 31.875 and 0, clamped to 127
    assert found.activations == 8 and found.zero is None
