"""Linear merging against its formula."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.errors import UsageError
from nett.merge import linear
from support.cli import nett
from support.merging import STORED, Model, assert_same, family, tensor_by_tensor
from support.tensors import Array, read_tensors, write_tensors


def reference(tuned: list[Model], weights: list[float], normalize: bool = True) -> Model:
    """sum_i w_i x_i / sum_i w_i, added in order in the models' own precision."""
    kind = next(iter(tuned[0].values())).dtype.type

    def merge(_: Array, models: list[Array]) -> Array:
        total = sum(kind(w) * m for w, m in zip(weights, models, strict=True))
        return np.asarray(total / kind(sum(weights)) if normalize else total)

    return tensor_by_tensor(merge, tuned[0], tuned)


@pytest.mark.parametrize("stored", STORED)
def test_average_of_every_element_type(tmp_path: Path, stored: str) -> None:
    """Without a base the first model's types are the output's; in the mixed family that is float32 throughout."""
    models = family(tmp_path, stored)
    expected = reference(models.tuned, [1.0] * 3)
    found = models.merge("linear", base=False)
    assert_same(found, expected if stored == "mixed" else models.as_stored(expected))


@pytest.mark.parametrize("weights", [[1.0, 2.0, 0.5], [0.2, 0.3, 0.5], [1.0, -0.25, 0.0]])
@pytest.mark.parametrize("normalize", [True, False])
def test_weights(tmp_path: Path, weights: list[float], normalize: bool) -> None:
    models = family(tmp_path)
    words = ["--weight", ",".join(map(str, weights)), "--normalize" if normalize else "--no-normalize"]
    assert_same(models.merge("linear", *words, base=False), reference(models.tuned, weights, normalize))


def test_a_base_that_is_named_is_no_model(tmp_path: Path) -> None:
    models = family(tmp_path)
    assert_same(models.merge("linear"), models.merge("linear", base=False))


def test_worked_example() -> None:
    tuned = [np.array([1.0, -2.0], np.float32), np.array([3.0, 6.0], np.float32)]
    np.testing.assert_array_equal(linear(tuned), [2, 2])
    np.testing.assert_array_equal(linear(tuned, weight=[3, 1]), [1.5, 0])
    np.testing.assert_array_equal(linear(tuned, weight=0.5, normalize=False), [2, 2])
    np.testing.assert_array_equal(linear(tuned, weight=[1, -1]), [-2, -8])  # weights that cancel divide by nothing


def test_wrong_number_of_weights() -> None:
    with pytest.raises(UsageError, match="weight has 3 values for 2 models"):
        linear([np.zeros(2, np.float32)] * 2, weight=[1, 2, 3])


@given(hnp.arrays(np.float32, (3, 9), elements=st.floats(-8, 8, width=32)), st.floats(0.125, 4, width=32))
def test_between_the_smallest_and_the_largest(models: Array, weight: float) -> None:
    merged = linear(list(models), weight=[1.0, weight, 2.0])
    slack = 1e-5
    assert np.all(merged >= models.min(axis=0) - slack) and np.all(merged <= models.max(axis=0) + slack)
    np.testing.assert_allclose(linear([models[0]] * 3, weight=[1.0, weight, 2.0]), models[0], rtol=1e-6)


def test_a_mean_of_float32_models_waits_for_no_compiler(tmp_path: Path) -> None:
    """numba takes longer to import than small models take to merge."""
    rng = np.random.default_rng(0)
    for name in "ab":
        write_tensors(tmp_path / name / "model.safetensors", {"w": rng.standard_normal((8, 4)).astype(np.float32)})
    code = "import sys; from nett.core import jit; from nett.cli.app import run; jit.OWN_PROCESS = True; "
    code += "code = run(sys.argv[1:]); sys.exit(code or ('numba' in sys.modules) * 99)"
    words = ["merge", "linear", "a", "b", "--out", "out", "--no-speak"]
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize(("weights", "shown"), [("0", "0, 0"), ("0,0", "0, 0"), ("1,-1", "1, -1")])
def test_weights_that_sum_to_nothing_are_refused(weights: str, shown: str, tmp_path: Path) -> None:
    """Before anything is written; sums without a division are taken as they are asked for."""
    models = {name: np.full(3, value, np.float32) for name, value in (("a", 1.0), ("b", 2.0))}
    for name, values in models.items():
        write_tensors(tmp_path / name / "model.safetensors", {"w": values})
    words = ["merge", "linear", str(tmp_path / "a"), str(tmp_path / "b"), "--weight", weights, "--no-speak"]
    said = nett(*words, "--out", str(tmp_path / "out"), "--dry-run")
    said.failed(3, f"merge/linear: the weights of 'w' are {shown}, and an average divides by their sum, which is 0")
    nett(*words, "--out", str(tmp_path / "out"), "--no-normalize").succeeded()
    first, second = ([float(w) for w in weights.split(",")] * 2)[:2]
    assert np.array_equal(read_tensors(tmp_path / "out")["w"], first * models["a"] + second * models["b"])


def test_weights_of_one_tensor_that_sum_to_nothing(tmp_path: Path) -> None:
    """A recipe whose filters leave a tensor without any model."""
    for name in "ab":
        write_tensors(tmp_path / name / "model.safetensors", {"w": np.ones(3, np.float32), "v": np.ones(2, np.float32)})
    weight = "parameters: {weight: [{filter: v, value: 0}, {value: 1}]}"
    models = "".join(f"  - {{model: {tmp_path / name}, {weight}}}\n" for name in "ab")
    (tmp_path / "r.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    said = nett("merge", str(tmp_path / "r.yml"), "--out", str(tmp_path / "out"), "--no-speak")
    said.failed(3, "the weights of 'v' are 0, 0", "nett merge explain")
