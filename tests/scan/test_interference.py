"""Interference against plain NumPy: planted conflicts of a known share, overlaps, subspaces; and what is advised when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.standing import Point
from nett.scan import advice
from nett.scan.engine import run_probes
from nett.scan.interference import interference
from nett.scan.interference_page import said
from nett.scan.subspaces import right_directions
from support.cli import nett
from support.scanning import model, tuned, write
from support.tensors import Array

Model = dict[str, Array]


def flat(base: Model, one: Model) -> Array:
    return np.concatenate([(one[n] - base[n]).ravel() for n in base])


def figures_of(*models: Model, **parameters: Any) -> dict[str, Any]:
    return dict(interference(list(models), **parameters).figures)


@pytest.fixture(scope="module")
def crowd() -> tuple[Model, list[Model], dict[str, Any]]:
    base = model()
    ones = [tuned(base, seed, share=0.6) for seed in range(3)]
    return base, ones, figures_of(base, *ones)


def test_signs_mass_and_cosines(crowd: Any) -> None:
    base, ones, figures = crowd
    deltas = np.stack([flat(base, one) for one in ones])
    moved = (deltas != 0).sum(0)
    opposed = (deltas > 0).any(0) & (deltas < 0).any(0)
    wide = deltas.astype(np.float64)
    mass = np.abs(wide).sum(0)
    assert figures["sign_conflict"] == opposed.sum() / (moved >= 2).sum()
    assert figures["conflict_mass"] == pytest.approx(mass[opposed].sum() / mass.sum(), rel=1e-12)
    assert figures["cancelled"] == pytest.approx(1 - np.abs(wide.sum(0)).sum() / mass.sum(), rel=1e-12)
    lengths = np.linalg.norm(wide, axis=1)
    np.testing.assert_allclose(figures["cosines"], wide @ wide.T / np.outer(lengths, lengths), rtol=1e-12)
    both = (deltas[0] != 0) & (deltas[2] != 0)
    expected = (np.sign(deltas[0]) != np.sign(deltas[2]))[both].mean()
    assert figures["pair_conflicts"][0][2] == figures["pair_conflicts"][2][0] == expected
    assert figures["pair_conflicts"][1][1] is None
    row = figures["1"]  # the first fine-tune
    ground = np.concatenate([a.ravel() for a in base.values()]).astype(np.float64)
    assert row["norm_ratio"] == pytest.approx(lengths[0] / np.linalg.norm(ground), rel=1e-6)
    assert row["moved"] == (deltas[0] != 0).mean()


def test_largest_entries(crowd: Any) -> None:
    """The sets are those from the lowest bin (bfloat16's) on that holds a fifth of all elements; their size is said."""
    base, ones, figures = crowd
    keys = [np.abs(flat(base, one)).view(np.uint32) >> 16 for one in ones]
    sets = [k >= np.sort(k)[-int(np.ceil(0.2 * k.size))] for k in keys]
    assert figures["top"]["share"] == [s.mean() for s in sets]
    assert all(0.2 <= s < 0.21 for s in figures["top"]["share"])
    for s in range(3):
        for t in range(3):
            expected = (sets[s] & sets[t]).sum() / min(sets[s].sum(), sets[t].sum())
            assert figures["top"]["overlap"][s][t] == expected


def test_planted_conflicts() -> None:
    """A quarter of the elements moved by both, a fifth of those oppositely; sizes of a power of two, so sums are exact."""
    base = {
        "model.layers.0.mlp.weight": np.zeros((40, 50), np.float32),
        "model.layers.0.norm": np.zeros(10, np.float32),
    }
    first, second = ({n: a.copy() for n, a in base.items()} for _ in range(2))
    one, two = (m["model.layers.0.mlp.weight"].reshape(-1) for m in (first, second))
    one[:1000] = 0.25
    two[500:1500] = 0.25
    two[500:600] = -0.25
    figures = figures_of(base, first, second, top=0.5)
    assert figures["sign_conflict"] == 100 / 500
    assert figures["conflict_mass"] == 100 * 0.5 / (2000 * 0.25)
    assert figures["cancelled"] == pytest.approx(100 * 0.5 / (2000 * 0.25), rel=1e-12)
    assert figures["pair_conflicts"][0][1] == 0.2
    assert figures["cosines"][0][1] == pytest.approx((400 - 100) / 1000, rel=1e-12)
    # Half of 2,010 elements are asked for, but 1,000 of each moved: those that did not are none of the largest.
    assert figures["top"]["share"] == [1000 / 2010] * 2 and figures["top"]["overlap"][0][1] == 0.5
    assert figures["by_kind"]["mlp"]["sign_conflict"] == 0.2 and figures["by_kind"]["norm"]["sign_conflict"] is None


def low(rng: np.random.Generator, directions: Array, rows: int = 30) -> Array:
    """A matrix whose rows lie in the span of these directions [columns, k]."""
    return (rng.normal(size=(rows, directions.shape[1])) @ directions.T).astype(np.float32)


@pytest.mark.parametrize(("name", "shared", "angle"), [("same", 1.0, 0.0), ("orthogonal", 0.0, 90.0)])
def test_planted_subspaces(name: str, shared: float, angle: float) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    base = {"model.layers.0.up.weight": rng.normal(size=(30, 20)).astype(np.float32)}
    other = basis[:, :4] if name == "same" else basis[:, 4:8]
    ones = [
        {n: np.zeros_like(a) + low(rng, d) for n, a in base.items()} for d in (basis[:, :4], other)
    ]  # on a base of zeros, so that nothing is rounded
    figures = figures_of({n: a * 0 for n, a in base.items()}, *ones, rank=4)
    found = figures["subspaces"]["up"]
    assert found["matrices"] == ["model.layers.0.up.weight"] and not found["sampled_rows"]
    assert found["shared"] == pytest.approx(shared, abs=1e-6)
    assert found["smallest_angle"] == pytest.approx(angle, abs=0.1)
    assert found["chance"] == 4 / 20


def test_principal_angles_of_random_subspaces(crowd: Any) -> None:
    """Mean squared cosine over pairs and matrices, from numpy.linalg.svd of the differences; some matrices of a kind."""
    base, ones, figures = crowd
    expected = []
    for name in ("model.layers.0.mlp.weight", "model.layers.1.mlp.weight"):
        vs = [np.linalg.svd((one[name] - base[name]).astype(np.float64))[2][:8].T for one in ones]
        expected += [np.square(np.linalg.svd(vs[s].T @ vs[t])[1]).sum() / 8 for s, t in ((0, 1), (0, 2), (1, 2))]
    found = figures["subspaces"]["mlp"]
    assert found["shared"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert found["matrices"] == ["model.layers.0.mlp.weight", "model.layers.1.mlp.weight"]
    assert not figures_of(base, *ones, matrices=0)["subspaces"]
    few = figures_of(base, *ones, matrices=1)["subspaces"]["mlp"]["matrices"]
    assert few == ["model.layers.0.mlp.weight"]


class Held:
    """A matrix that is read piece by piece."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape, self.most = array, array.shape, 0

    def values(self, start: int, stop: int) -> Array:
        self.most = max(self.most, stop - start)
        return self.array.reshape(-1)[start:stop]


@pytest.mark.parametrize("shape", [(90, 12), (12, 90), (90, 70)])
def test_directions_of_large_matrices(shape: tuple[int, int]) -> None:
    """Exact by columns or by rows; of a matrix large both ways, sampled rows find a subspace that is in all rows."""
    rng = np.random.default_rng(3)
    matrix = low(rng, np.linalg.qr(rng.normal(size=(shape[1], 5)))[0], shape[0])
    expected = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)[2][:5].T
    found, sampled = right_directions(Held(matrix), 8, seed=0, limit=20)
    assert sampled is (shape == (90, 70)) and found.shape[1] == 5
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert right_directions(Held(matrix * 0), 8, seed=0, limit=20)[0].shape[1] == 0
    matrix[0, 0] = np.nan
    assert right_directions(Held(matrix), 8, seed=0, limit=200)[0].shape[1] == 0


def test_not_finite_elements_are_left_out_and_counted(crowd: Any) -> None:
    base, ones, _ = crowd
    broken = {n: a.copy() for n, a in ones[0].items()}
    broken["model.layers.0.mlp.weight"][0, :3] = np.nan
    figures = figures_of(base, broken, ones[1])
    assert figures["nonfinite"] == 3 and np.isfinite(figures["sign_conflict"])
    assert np.isfinite(figures["cosines"][0][1])


def test_what_is_not_compared_is_said() -> None:
    """Of another shape, of another kind, or not there in one of them."""
    base = model()
    one, two = tuned(base, 0, share=0.6), tuned(base, 1, share=0.6)
    first, second, third = list(base)[:3]
    one[first] = one[first][:-1]
    two[second] = np.zeros(base[second].shape, np.int8)
    del two[third]
    figures = figures_of(base, one, two)
    assert figures["not_compared"] == sorted([first, second, third])
    assert said(figures)[0].startswith("3 tensors of the base were not compared, ")
    rest = {n: a for n, a in base.items() if n not in (first, second, third)}
    assert figures["cosines"] == figures_of(rest, one, two)["cosines"]
    assert figures_of(base, tuned(base, 0, share=0.6), tuned(base, 1, share=0.6))["not_compared"] == []


def test_nothing_to_compare(crowd: Any) -> None:
    base, ones, _ = crowd
    for given, why in (
        ([], "no fine-tune was given"),
        ([base], "no fine-tune was given"),
        ([base, ones[0]], "only one fine-tune was given"),
        (
            [base, {"x": np.zeros(3, np.float32)}, ones[0]],
            "no tensor of 0 is in all of 1, 2 as floats of the same shape",
        ),
    ):
        figures = dict(interference(given).figures)
        assert figures["compared"] == 0 and why in figures["why"] and said(figures) == [figures["why"]]


def test_equal_models_are_told(crowd: Any) -> None:
    base, (one, other, _), _ = crowd
    same, nearly = dict(one), {n: a.copy() for n, a in one.items()}
    name = next(n for n in base if (one[n] != base[n]).any())
    place = tuple(np.argwhere(one[name] != base[name])[0])
    nearly[name][place] = np.nextafter(one[name][place], np.float32(9))

    def advised(*models: Model) -> str:
        figures = figures_of(base, *models)
        assert figures["advice"]["method"] is None and said(figures)[-1].endswith(figures["advice"]["reason"])
        return str(figures["advice"]["reason"])

    assert advised(base, base) == "all 2 equal the base, and so would any merge of them"
    assert said(figures_of(base, base, base))[0].startswith("no merge is suggested")
    assert advised(one, base) == "2 equals the base, so there is nothing in it to merge: leave it out"
    assert "2, 3 equal the base, so there is nothing in them" in advised(one, base, base)
    assert advised(one, other, same).startswith("1 and 3 make the same changes: a merge would count them twice")
    assert "as do 2 more pairs" in advised(one, same, same)
    assert "the same changes" not in advised(one, nearly)


def point(method: str, asset: str, quality: float, spread: float = 0.1) -> Point:
    return Point(method, asset, 1000.0, quality, spread, 0.1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(points: list[Point], case: tuple[Any, Any, list[float]] = (0.0, 0.1, [0.2, 0.4, 0.9])) -> None:
        monkeypatch.setattr(advice, "_single_models", lambda: points)
        monkeypatch.setattr(advice, "_case", lambda: case)

    return put


def advise(cosine: float | None = 0.05, moved_by_two: float = 9.0, far: tuple[str, ...] = (), nbytes: int = 10) -> Any:
    return advice.advise("b", ["x", "y z"], cosine=cosine, moved_by_two=moved_by_two, far=far, nbytes=nbytes)


def test_what_is_suggested_and_why(measured: Any) -> None:
    ahead = [point("merge/task_arithmetic", "a", 9), point("merge/ties", "a", 8)]
    ahead += [point("merge/task_arithmetic", "b", 9), point("merge/ties", "b", 8.95)]
    measured(ahead)
    found = advise()
    assert found["method"] == "merge/task_arithmetic"
    assert found["command"] == "nett merge task_arithmetic --base b x 'y z' --scale 0.4 --out OUT"
    assert "2 of 2 measured beds (by more than the spread on 1)" in found["reason"] and "tune yours" in found["reason"]
    assert "1,000 bytes" not in found["reason"] and "1,000 bytes" in advise(nbytes=5000)["reason"]
    for nothing, reason in (
        (advise(cosine=0.6), "a mean cosine of 0.000 to 0.100; these have 0.600"),
        (advise(cosine=None), "too small"),
        (advise(far=("x",)), "x: too far from b"),
    ):
        assert nothing["method"] is None and nothing["command"] is None and reason in nothing["reason"]


def test_no_suggestion_without_evidence(measured: Any) -> None:
    measured([])
    assert "no one merge is the best" in advise()["reason"]
    measured([point("merge/ties", "a", 9), point("merge/linear", "a", 8), point("merge/ties", "b", 7),
              point("merge/linear", "b", 8)])  # fmt: skip
    assert advise()["method"] is None
    measured([point("merge/ties", "a", 9), point("merge/linear", "a", 8)], (None, None, []))
    assert "no claim tells how alike" in advise()["reason"]
    found = advise(moved_by_two=0.0, cosine=0.0)  # no measurement is needed where nothing meets
    assert found["command"].endswith("--scale 1 --out OUT") and "no element is moved by two" in found["reason"]


def test_the_stored_claims_are_read() -> None:
    """P10 tells how alike its fine-tunes were; the points are of single models."""
    low_cosine, high_cosine, scales = advice._case()
    if low_cosine is not None:
        assert -1 <= low_cosine <= high_cosine <= 1 and all(0 < s < 3 for s in scales)
    assert {p.method for p in advice._single_models()} <= {"merge/linear", "merge/task_arithmetic", "merge/ties",
        "merge/consensus", "merge/pcb", "merge/opcm", "merge/slerp", "merge/dare_ties", "merge/dare_linear"}  # fmt: skip


def test_command_line_json_and_page(crowd: Any, tmp_path: Path) -> None:
    base, ones, figures = crowd
    paths = [write(_folder(tmp_path / name), one) for name, one in zip("bxyz", [base, *ones], strict=True)]
    run = nett("scan", *paths, "--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")).succeeded()
    assert f"{100 * figures['sign_conflict']:.1f} % of the elements that two or more moved" in run.out
    assert "suggested: " in run.out or "no merge is suggested: " in run.out
    stored = json.loads((tmp_path / "s.json").read_text())
    own = next(p for p in stored["probes"] if p["name"] == "interference")["figures"]
    assert own["sign_conflict"] == figures["sign_conflict"] and own["top"] == figures["top"]
    page = (tmp_path / "s.html").read_text()
    assert "Cosine of the task vectors" in page and "Leading directions in common" in page
    again = run_probes({"interference": {}}, paths, threads=1).probes[0].findings.figures
    assert json.dumps(again) == json.dumps(own)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
