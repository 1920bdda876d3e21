"""Output-space principal components of a linear layer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nett
from nett.core.errors import NettError
from nett.core.moments import Moments
from nett.weights.protocol import Factors


def moments(x):
    found = Moments(x.shape[1], ("gram", "means"))
    found.add(torch.from_numpy(x).float())
    return found["gram"], found["means"]


def drawn(seed, rows=400, inputs=10, outputs=14):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) * rng.uniform(0.1, 3, inputs) + rng.normal(size=inputs)
    weight, bias = rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)
    return x.astype(np.float32), weight.astype(np.float32), bias.astype(np.float32)


def given_back(found, x):
    made = x.astype(np.float64) @ found.right.double().numpy().T @ found.left.double().numpy().T
    return made + (0 if found.bias is None else found.bias.double().numpy())


@settings(max_examples=25)
@given(
    seed=st.integers(0, 500),
    rank=st.integers(1, 5),
    biased=st.booleans(),
    centre=st.sampled_from(["always", "never", "biased"]),
)
def test_the_error_is_the_sum_of_the_eigenvalues_that_were_dropped(seed, rank, biased, centre):
    """Eigenvalues from float64 NumPy on the outputs themselves."""
    x, weight, bias = drawn(seed)
    y = x.astype(np.float64) @ weight.T.astype(np.float64)
    about = y - y.mean(axis=0) if centre == "always" or (centre == "biased" and biased) else y
    dropped = np.linalg.eigvalsh(about.T @ about / len(y))[::-1][rank:].sum()
    found = nett.weights.afm(
        torch.from_numpy(weight), torch.from_numpy(bias) if biased else None, *moments(x), rank=rank, centre=centre
    )
    assert isinstance(found, Factors)
    assert (found.bias is None) == (not biased and centre != "always")
    error = np.square(y + (bias if biased else 0) - given_back(found, x)).sum(axis=1).mean()
    assert error == pytest.approx(dropped, rel=2e-3, abs=1e-5 * np.square(y).sum(axis=1).mean())


def test_outputs_of_that_rank_about_their_mean_come_back():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 3)) @ rng.normal(size=(3, 12)) + rng.normal(size=12)).astype(np.float32)
    weight, bias = rng.normal(size=(16, 12)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    found = nett.weights.afm(torch.from_numpy(weight), torch.from_numpy(bias), *moments(x), rank=3)
    y = x.astype(np.float64) @ weight.T + bias
    np.testing.assert_allclose(given_back(found, x), y, atol=2e-3)
    assert found.left.shape == (16, 3)


def test_no_worse_than_the_singular_vectors_of_the_weights():
    x, weight, bias = drawn(3)
    y = x.astype(np.float64) @ weight.T + bias
    for rank in (1, 2, 4):
        found = nett.weights.afm(torch.from_numpy(weight), torch.from_numpy(bias), *moments(x), rank=rank)
        u, s, v = np.linalg.svd(weight.astype(np.float64))
        plain = x @ ((u[:, :rank] * s[:rank]) @ v[:rank]).T + bias
        assert np.square(y - given_back(found, x)).sum() < np.square(y - plain).sum()


def test_energy_takes_the_least_rank_that_holds_it():
    x, weight, bias = drawn(4)
    y = x.astype(np.float64) @ weight.T
    values = np.linalg.eigvalsh(np.cov(y.T, bias=True))[::-1]
    for energy in (0.3, 0.6, 0.8):
        expected = 1 + int(np.sum(np.cumsum(values) / values.sum() < energy))
        found = nett.weights.afm(torch.from_numpy(weight), torch.from_numpy(bias), *moments(x), energy=energy)
        assert found.left.shape[1] == expected


def test_share_bounds_the_numbers():
    x, weight, bias = drawn(5)
    found = nett.weights.afm(torch.from_numpy(weight), torch.from_numpy(bias), *moments(x), share=0.5)
    assert found.left.numel() + found.right.numel() <= 0.5 * weight.size
    assert found.left.shape[1] == 2  # 2 * (10 + 14) <= 70 < 3 * 24


@pytest.mark.parametrize("how", [{"energy": 1.0}, {"rank": 10}, {"share": 1.0, "rank": 6}])
def test_a_layer_that_would_not_get_smaller_comes_back(how):
    x, weight, bias = drawn(6)
    weight = torch.from_numpy(weight)
    found = nett.weights.afm(weight, torch.from_numpy(bias), *moments(x), **how)
    assert torch.equal(found, weight)


def test_the_type_of_the_weights_is_kept_and_nothing_is_written_to():
    x, weight, bias = drawn(7)
    given = [torch.from_numpy(weight).bfloat16(), torch.from_numpy(bias).bfloat16(), *moments(x)]
    before = [g.clone() for g in given]
    found = nett.weights.afm(*given, rank=2)
    assert {found.left.dtype, found.right.dtype, found.bias.dtype} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_outputs_that_never_change_need_one_direction():
    weight = torch.ones(6, 5)
    found = nett.weights.afm(weight, torch.ones(6), torch.ones(5, 5), torch.ones(5), energy=0.9)
    assert found.left.shape == (6, 1)
    np.testing.assert_allclose(given_back(found, np.ones((1, 5), np.float32)), np.full((1, 6), 6.0), rtol=1e-5)


def test_moments_that_are_not_finite_are_refused():
    with pytest.raises(NettError, match="not finite"):
        nett.weights.afm(torch.ones(6, 5), None, torch.full((5, 5), float("nan")), torch.ones(5))


@pytest.mark.parametrize(
    ("how", "said"),
    [({"energy": 1.5}, "0 <= energy <= 1"), ({"rank": 0}, "1 <= rank"), ({"share": 0.0}, "0 < share <= 1")],
)
def test_parameters_out_of_range_are_named(how, said):
    with pytest.raises(NettError, match=said):
        nett.weights.afm(torch.ones(6, 5), None, torch.ones(5, 5), torch.ones(5), **how)


def test_both_factors_have_each_direction_at_the_same_norm():
    x, weight, bias = drawn(8)
    found = nett.weights.afm(torch.from_numpy(weight), torch.from_numpy(bias), *moments(x), rank=3)
    np.testing.assert_allclose(found.left.norm(dim=0).numpy(), found.right.norm(dim=1).numpy(), rtol=1e-5)
    crossed = (found.left.T @ found.left).numpy()
    np.testing.assert_allclose(crossed - np.diag(np.diag(crossed)), 0, atol=1e-5)
