"""TIES-Merging (P10) against the authors' algorithm written in plain NumPy, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.merge import ties
from support.cli import nett as cli
from support.merging import STORED, assert_same, elect, family, ties_reference, trim_all, trim_exact
from support.tensors import Array, read_tensors, write_tensors

EXACT: dict[str, Any] = {"scope": "tensor", "tie_policy": "lowest-index"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": 0.05},
    {"density": 0.5, "scale": 0.7},
    {"density": 1.0, "scale": 1.3},
    {"density": 0.0},
    {"density": [0.1, 0.4, 0.9]},
    {"scope": "tensor"},
    {"tie_policy": "lowest-index"},
    EXACT,
    EXACT | {"density": 0.001},
    EXACT | {"density": 0.0},
    EXACT | {"weight": [0.3, 1.0, 2.0], "weight_in_election": True, "zero_sign": "positive", "density": 0.5},
    {"weight": [0.3, 1.0, 2.0]},
    {"weight": [0.5, 0.25, 2.0], "weight_in_election": True, "normalize": False},
    {"zero_sign": "positive", "density": 0.7},
    {"normalize": False, "density": 0.6},
]


def words(options: dict[str, Any]) -> list[str]:
    """Options as they stand on a command line."""
    found = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return found


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "defaults")
@pytest.mark.parametrize("grid", [False, True], ids=["noise", "ties"])
def test_command_line_is_the_authors_algorithm(tmp_path: Path, options: dict[str, Any], grid: bool) -> None:
    models = family(tmp_path, grid=grid)
    found = models.merge("ties", *words(options))
    assert_same(found, models.as_stored(ties_reference(models.base, models.tuned, **options)))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("options", [{}, EXACT], ids=["model", "tensor"])
def test_every_element_type(tmp_path: Path, stored: str, options: dict[str, Any]) -> None:
    """Read, subtracted and averaged in float32, whatever is stored; rounded once, to the base's types."""
    models = family(tmp_path, stored, seed=3)
    found = models.merge("ties", *words(options))
    assert_same(found, models.as_stored(ties_reference(models.base, models.tuned, **options)))


def test_worked_example() -> None:
    """Three task vectors of five entries, density 0.4: k = 5 - 2 = 3, so every entry from the third smallest on
    stays: three and its equals."""
    base = np.zeros(5, np.float32)
    tuned = [
        np.array([4.0, 1.0, -3.0, 2.0, 0.0], np.float32),  # keeps 4, -3, 2
        np.array([-2.0, 6.0, 5.0, -1.0, -1.0], np.float32),  # keeps -2, 6, 5
        np.array([-2.0, 2.0, 0.5, -2.0, 1.0], np.float32),  # third smallest is 2: keeps -2, 2, -2
    ]
    # sums: 4-2-2 = 0, 8, 2, 0, 0; signs 0, +, +, 0, 0; the majority is +, and takes the place of the zeros
    expected = np.array([4.0, 4.0, 5.0, 2.0, 0.0], np.float32)
    np.testing.assert_array_equal(ties(base, tuned, density=0.4), expected)
    np.testing.assert_array_equal(ties(base, tuned, density=0.4, scale=0.5), expected / 2)
    summed = np.array([4.0, 8.0, 5.0, 2.0, 0.0], np.float32)
    np.testing.assert_array_equal(ties(base, tuned, density=0.4, normalize=False), summed)


def test_zero_sum_takes_the_sign_of_the_majority() -> None:
    """2 - 2 = 0; two of the other entries are negative, one positive: the majority is -, so -2 stays."""
    base = np.zeros(4, np.float32)
    tuned = [np.array([2, -1, -1, 1], np.float32), np.array([-2, -1, -3, 1], np.float32)]
    np.testing.assert_array_equal(ties(base, tuned, density=1.0), [-2, -1, -2, 1])
    np.testing.assert_array_equal(ties(base, tuned, density=1.0, zero_sign="positive"), [2, -1, -2, 1])


def test_no_majority_counts_as_negative() -> None:
    """As many + as -: the authors' sign is then 0, and `where(sign > 0, ...)` takes the negative entries."""
    base = np.zeros(3, np.float32)
    tuned = [np.array([2, -1, 1], np.float32), np.array([-2, -1, 1], np.float32)]
    np.testing.assert_array_equal(ties(base, tuned, density=1.0), [-2, -1, 1])


def test_k_rule_keeps_the_kth_value_and_its_equals() -> None:
    """density 0.2 of 5 is 1, k = 4: the fourth smallest stays too, and everything equal to it."""
    base = np.zeros(5, np.float32)
    tau = np.array([1, 2, 3, -3, 5], np.float32)
    np.testing.assert_array_equal(ties(base, [tau], density=0.2), [0, 0, 3, -3, 5])
    np.testing.assert_array_equal(ties(base, [tau], density=0.2, tie_policy="lowest-index"), [0, 0, 0, 0, 5])
    np.testing.assert_array_equal(ties(base, [tau], density=0.4, tie_policy="lowest-index"), [0, 0, 3, 0, 5])


def test_mostly_zero_task_vector_keeps_everything_that_moved() -> None:
    """The k-th smallest is 0: nothing is trimmed, so nothing of a sparse fine-tune is lost."""
    base = np.zeros(10, np.float32)
    tau = np.zeros(10, np.float32)
    tau[[2, 7]] = (0.5, -4)
    np.testing.assert_array_equal(ties(base, [tau], density=0.2), tau)


_values = hnp.arrays(np.float32, (3, 24), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -3.0, 1e-40]))


@given(_values, st.sampled_from([0.0, 0.1, 0.2, 0.33, 0.5, 0.99, 1.0]), st.booleans(), st.booleans())
def test_arrays_equal_the_reference(taus: Array, density: float, exact: bool, normalize: bool) -> None:
    """Over arrays full of ties, zeros of both signs and subnormals."""
    base = np.zeros(taus.shape[1], np.float32)
    trim = trim_exact if exact else trim_all
    expected = base + elect(np.stack([trim(t, density) for t in taus]), [1.0] * len(taus), normalize=normalize)
    policy = "lowest-index" if exact else "all"
    found = ties(base, list(taus), density=density, tie_policy=policy, normalize=normalize)
    np.testing.assert_array_equal(found, expected)


@given(hnp.arrays(np.float32, 40, elements=st.floats(-4, 4, width=32)))
def test_one_model_at_density_1_is_that_model(model: Array) -> None:
    base = np.zeros(40, np.float32)
    np.testing.assert_array_equal(ties(base, [model], density=1.0), model)


def test_error_against_float64_is_that_of_one_rounding(tmp_path: Path) -> None:
    """bfloat16 in and out: within half a unit in the last place of the exact answer, plus float32 crumbs."""
    models = family(tmp_path, "bf16", seed=5)
    found = models.merge("ties", "--density", "0.3")
    exact = ties_reference(
        {n: a.astype(np.float64) for n, a in models.base.items()},
        [{n: a.astype(np.float64) for n, a in m.items()} for m in models.tuned],
        density=0.3,
    )
    for name, values in exact.items():
        half_ulp = 2.0 ** (np.floor(np.log2(np.abs(values))) - 8)
        assert np.all(np.abs(found[name] - values) <= half_ulp * 1.001)


@pytest.mark.parametrize("wide", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("tie_policy", ["all", "lowest-index"])
def test_float32_beside_float64(tmp_path: Path, wide: tuple[int, ...], scope: str, tie_policy: str) -> None:
    """One threshold over tensors of both widths, whichever models hold the wide ones: all is reckoned in float64."""
    rng = np.random.default_rng(5)
    paths, models = [], []
    for i in range(3):
        tensors = {n: rng.normal(size=size).astype(np.float32) for n, size in (("a", 300), ("b", 200))}
        types = {"a": "F32", "b": "F64" if i in wide else "F32"}
        if i in wide:
            tensors["b"] = rng.normal(size=200)
        paths.append(str(write_tensors(tmp_path / f"m{i}" / "model.safetensors", tensors, types).parent))
        models.append({n: v.astype(np.float64) for n, v in tensors.items()})
    words = ["--base", paths[0], "--scope", scope, "--tie-policy", tie_policy, "--out", str(tmp_path / "out")]
    cli("merge", "ties", *paths[1:], *words, "--no-speak").succeeded()
    expected = ties_reference(models[0], models[1:], scope=scope, tie_policy=tie_policy)
    for name, found in read_tensors(tmp_path / "out").items():
        assert np.allclose(found, expected[name], rtol=1e-6 if found.dtype == np.float32 else 1e-13)
