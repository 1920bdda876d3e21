"""TALL-masks (P04) against equations 3 to 5 in plain NumPy: the vector, the bits, the rebuilt tasks, the receipt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core.errors import UsageError
from nett.merge import tall_masks
from support.cli import nett
from support.merging import STORED, Family, Model, assert_same, family, multi_task_vector, task_masks
from support.tensors import Array, header_of, read_tensors, rounded


def written(models: Family, out: Path, *words: str) -> dict[str, object]:
    base = ("--base", models.base_path, "--out", str(out), "--no-speak")
    nett("merge", "tall_masks", *models.paths, *base, *words).succeeded()
    receipt: dict[str, object] = json.loads((out / "nett.json").read_text())
    return receipt


def unpacked(file: Path, like: Model) -> Model:
    """The masks of a file: little-endian bits, eight to a byte, each tensor by itself."""
    packed = read_tensors(file)
    return {
        n: np.unpackbits(packed[n], count=a.size, bitorder="little").astype(bool).reshape(a.shape)
        for n, a in like.items()
    }


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("words", "lambdas", "how"),
    [
        ([], [0.4] * 3, {}),
        (["--mask-lambda", "0.2,0.4,0.6"], [0.2, 0.4, 0.6], {}),
        (["--over", "ties", "--density", "0.3"], [0.4] * 3, {"over": "ties", "density": 0.3}),
    ],
    ids=["sum", "lambdas", "ties"],
)
def test_files_are_the_equations(
    tmp_path: Path, stored: str, words: list[str], lambdas: list[float], how: dict[str, object]
) -> None:
    models = family(tmp_path, stored)
    out = tmp_path / "out"
    receipt = written(models, out, *words)
    vector = multi_task_vector(models.base, models.tuned, **how)  # type: ignore[arg-type]
    kept = models.as_stored(vector)
    assert_same(read_tensors(out / "multi_task_vector.safetensors"), kept)
    masks = task_masks(models.base, models.tuned, vector, lambdas)
    rows = receipt["tasks"]
    assert isinstance(rows, list) and [r["name"] for r in rows] == ["m1", "m2", "m3"]
    for row, mask, model in zip(rows, masks, models.tuned, strict=True):
        assert_same(unpacked(out / "masks" / f"{row['name']}.safetensors", models.base), mask)
        bits = sum(int(m.sum()) for m in mask.values())
        assert row["mask_ones"] == pytest.approx(bits / sum(m.size for m in mask.values()), rel=1e-12)
        back = tmp_path / f"back-{row['name']}"
        said = nett("restore", str(out), "--task", row["name"], "--out", str(back)).succeeded()
        assert "approximate" in said.out and f"{row['relative_l2']:.4g}" in said.out
        rebuilt = models.as_stored({n: b + kept[n] * mask[n] for n, b in models.base.items()})
        assert_same(read_tensors(back), rebuilt)
        apart = sum(float(np.sum((rebuilt[n].astype(np.float64) - model[n]) ** 2)) for n in rebuilt)
        size = sum(float(np.sum(model[n].astype(np.float64) ** 2)) for n in rebuilt)
        assert row["relative_l2"] == pytest.approx((apart / size) ** 0.5, rel=1e-9)


def test_masks_take_one_bit_an_entry(tmp_path: Path) -> None:
    models = family(tmp_path)
    written(models, tmp_path / "out")
    header = header_of(tmp_path / "out" / "masks" / "m2.safetensors")
    for name, array in models.base.items():
        assert header[name]["dtype"] == "U8" and header[name]["shape"] == [-(-array.size // 8)]


def test_worked_example() -> None:
    """tau_1 = (4, 1, 0, 2), tau_2 = (1, 1, 0, -2); their sum is (5, 2, 0, 0).

    Task 1 at lambda 1: 4 > |5-4| yes, 1 > |2-1| no (strictly), 0 > 0 no, 2 > |0-2| no. At 0.5: yes, yes, no, yes.
    """
    base = np.zeros(4, np.float32)
    tuned = [np.array([4, 1, 0, 2], np.float32), np.array([1, 1, 0, -2], np.float32)]
    made = tall_masks(base, tuned, mask_lambda=1.0)
    np.testing.assert_array_equal(made["multi_task_vector"], [5, 2, 0, 0])
    np.testing.assert_array_equal(made["mask*"][0], [True, False, False, False])
    np.testing.assert_array_equal(made["mask*"][1], [False, False, False, False])
    made = tall_masks(base, tuned, mask_lambda=[0.5, 0.2])
    np.testing.assert_array_equal(made["mask*"][0], [True, True, False, True])
    np.testing.assert_array_equal(made["mask*"][1], [True, True, False, True])


def test_one_task_is_rebuilt_wherever_it_moved() -> None:
    """Of one task the vector is its own: |tau| > 0 wherever it moved, and base + tau is the fine-tune."""
    base, tuned = np.array([1, 2, 3], np.float32), np.array([1, 2.5, 2], np.float32)
    made = tall_masks(base, [tuned])
    np.testing.assert_array_equal(made["mask*"][0], [False, True, True])
    np.testing.assert_array_equal(base + made["multi_task_vector"] * made["mask*"][0], tuned)


_grid = hnp.arrays(np.float32, (4, 13), elements=st.integers(-32, 32).map(lambda n: n / 8))


@given(_grid, st.floats(0.05, 3), st.floats(1, 4))
def test_masks_rebuild_and_shrink_as_lambda_grows(models: Array, strictness: float, more: float) -> None:
    """A masked entry is base + vector, another is the base; a larger lambda keeps a subset."""
    base, *tuned = models
    loose = tall_masks(base, tuned, mask_lambda=strictness)
    strict = tall_masks(base, tuned, mask_lambda=strictness * more)
    vector = sum(t - base for t in tuned)
    np.testing.assert_array_equal(loose["multi_task_vector"], vector)
    for tau, wide, narrow in zip(tuned, loose["mask*"], strict["mask*"], strict=True):
        assert wide.dtype == np.bool_ and not np.any(narrow & ~wide)
        alone = np.all(np.asarray(vector) == tau - base)
        assert not alone or np.array_equal(wide, tau != base)
        assert not np.any(wide & (tau == base))


def test_wrong_number_of_lambdas(tmp_path: Path) -> None:
    models = family(tmp_path)
    words = ["--base", models.base_path, "--out", str(tmp_path / "o"), "--mask-lambda", "0.2,0.3"]
    nett("merge", "tall_masks", *models.paths, *words).failed(2, "mask_lambda", "2 values for 3 models")
    with pytest.raises(UsageError, match="mask_lambda has 2 values for 3 models"):
        tall_masks(np.zeros(3), [np.zeros(3)] * 3, mask_lambda=[0.1, 0.2])


def test_tasks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Folders called alike are named by their parents; every task can be restored."""
    one, two = family(tmp_path / "a", count=1), family(tmp_path / "b", count=1, seed=9)
    out = tmp_path / "out"
    words = ["--base", one.base_path, "--out", str(out), "--no-speak"]
    nett("merge", "tall_masks", one.paths[0], two.paths[0], *words).succeeded()
    names = [t["name"] for t in json.loads((out / "nett.json").read_text())["tasks"]]
    assert names == ["a.m1", "b.m1"]
    for name in names:
        nett("restore", str(out), "--task", name, "--out", str(tmp_path / f"back-{name}")).succeeded()
    assert not np.array_equal(
        rounded(read_tensors(tmp_path / "back-a.m1")["norm"], "F32"), read_tensors(tmp_path / "back-b.m1")["norm"]
    )
