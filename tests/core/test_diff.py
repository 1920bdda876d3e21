"""What moved between two checkpoints, against plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nett.core import sweep
from nett.core.checkpoint import open_checkpoint
from nett.core.diff import Diff, diff
from nett.core.edge import SCHEMA
from support.scanning import as_stored, in_every_container, model, tuned, write
from support.tensors import Array


def compared(a: str, b: str, **options: object) -> Diff:
    with open_checkpoint(a) as left, open_checkpoint(b) as right:
        return diff(left, right, **options)  # type: ignore[arg-type]


def expected(a: Array, b: Array) -> dict[str, float]:
    """Figures of one tensor, or of several one after the other."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    both = (x != 0) & (y != 0)
    flips = int((np.sign(x[both]) != np.sign(y[both])).sum())
    return {
        "relative_l2": float(np.linalg.norm(y - x) / np.linalg.norm(x)),
        "max_abs": float(np.abs(y - x).max()),
        "density": float((x != y).mean()),
        "cosine": float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)),
        "sign_changes": flips,
        "sign_agreement": 1 - flips / both.sum(),
        "nonfinite": 0,
    }


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("unit", [29, sweep.UNIT])
def test_every_figure(tmp_path: Path, dtype: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "UNIT", unit)
    a, b = as_stored(model(), dtype), as_stored(tuned(model(), 1, size=0.7), dtype)
    found = compared(write(tmp_path / "a", a, dtype), write(tmp_path / "b", b, dtype))
    record = found.as_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {t["name"] for t in record["tensors"]} == a.keys()
    for row in record["tensors"]:
        name = row["name"]
        figures = expected(a[name], b[name])
        assert {k: row[k] for k in figures} == pytest.approx(figures, rel=1e-9, abs=1e-15)
        assert row["status"] == "moved"
        size = {"F32": 4, "BF16": 2, "F16": 2}[dtype] * a[name].size
        assert row["a"] == row["b"] == {"dtype": dtype, "shape": list(a[name].shape), "bytes": size}
        if a[name].ndim == 2:
            values = np.linalg.svd(b[name].astype(np.float64) - a[name], compute_uv=False)
            held = np.cumsum(values**2) / (values**2).sum()
            share = values / values.sum()
            assert row["rank_99"] == int(np.searchsorted(held, 0.99)) + 1
            assert row["effective_rank"] == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)
        else:
            assert row["rank_99"] is row["effective_rank"] is None
    order = [t["relative_l2"] for t in record["tensors"]]
    assert order == sorted(order, reverse=True)


def test_layers_are_their_tensors_together(tmp_path: Path) -> None:
    a, b = model(), tuned(model(), 1, size=0.7)
    found = compared(write(tmp_path / "a", a), write(tmp_path / "b", b)).as_json()
    groups = {
        "model.layers.0": [n for n in a if ".0." in n], "model.layers.1": [n for n in a if ".1." in n],
        "lm_head": ["lm_head.weight"], "model.embed_tokens": ["model.embed_tokens.weight"], "model.norm": ["model.norm.weight"],
    }  # fmt: skip
    assert [x["layer"] for x in found["layers"]] == list(groups)
    for row in found["layers"]:
        names = groups[row["layer"]]
        figures = expected(*(np.concatenate([m[n].ravel() for n in names]) for m in (a, b)))
        assert {k: row[k] for k in figures} == pytest.approx(figures, rel=1e-9, abs=1e-15)
        assert row["tensors"] == len(names) and row["bytes"] == sum(a[n].nbytes for n in names)
    whole = expected(*(np.concatenate([m[n].ravel() for n in a]) for m in (a, b)))
    assert found["total"] == pytest.approx(whole, rel=1e-9, abs=1e-15)


def test_layers_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tensors = {f"h.{i}.w": np.ones(3, np.float32) * i for i in (10, 2, 0, 1)} | {"a.w": np.ones(1, np.float32)}
    found = compared(write(tmp_path / "a", tensors), write(tmp_path / "b", tensors))
    assert [x.name for x in found.layers] == ["h.0", "h.1", "h.2", "h.10", "a"]


def test_what_moved_and_what_did_not(tmp_path: Path) -> None:
    a = model()
    b = {n: v.copy() for n, v in a.items()}
    b["model.norm.weight"][3] += 1
    found = compared(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert {t.name: t.status for t in found.tensors} == {n: "moved" if n == "model.norm.weight" else "same" for n in a}
    first = found.tensors[0]
    assert first.name == "model.norm.weight" and first.moved is not None and first.moved.changed == 1
    assert not found.identical
    (edge,) = found.edges
    whole = sum(v.nbytes for v in a.values())
    assert (edge.kind, edge.bytes_freed, edge.guarantee) == ("sparse_delta", whole - 4 - 2, "exact")  # value, bitmap


def test_identical_checkpoints(tmp_path: Path) -> None:
    paths = list(in_every_container(tmp_path, model()).values())
    for path in paths[1:]:
        found = compared(paths[0], path, names=("A", "B"))
        assert found.identical
        (edge,) = found.edges
        assert (edge.kind, edge.target, edge.sources, edge.error, edge.guarantee) == (
            "duplicate_checkpoint", "B", ("A",), 0.0, "exact",
        )  # fmt: skip
        assert edge.bytes_freed == sum(v.nbytes for v in model().values())


def test_tensors_that_cannot_be_compared(tmp_path: Path) -> None:
    a = model()
    b = {n: v for n, v in model().items() if n != "model.norm.weight"} | {"new": np.ones(5, np.float32)}
    b["lm_head.weight"] = b["lm_head.weight"][:40]
    found = compared(write(tmp_path / "a", a), write(tmp_path / "b", b))
    status = {t.name: t.status for t in found.tensors if t.status != "same"}
    assert status == {"model.norm.weight": "only_a", "new": "only_b", "lm_head.weight": "reshaped"}
    assert {t.name for t in found.tensors[:3]} == set(status)  # what cannot be compared comes first
    rows = {t["name"]: t for t in found.as_json()["tensors"]}
    assert rows["new"]["a"] is None and rows["model.norm.weight"]["b"] is None
    assert rows["lm_head.weight"]["relative_l2"] is None and rows["lm_head.weight"]["a"]["shape"] == [48, 16]
    assert not found.identical


def test_another_type_with_the_same_values(tmp_path: Path) -> None:
    values = as_stored(model(), "BF16")
    found = compared(write(tmp_path / "a", values), write(tmp_path / "b", values, "BF16"))
    assert {t.status for t in found.tensors} == {"retyped"} and not found.identical
    (edge,) = found.edges
    assert edge.guarantee == "exact" and edge.bytes_freed == sum(v.size * 2 for v in values.values())


def test_zeros_nan_integers_and_nothing(tmp_path: Path) -> None:
    a = {
        "from zero": np.zeros((4, 4), np.float32), "to zero": np.ones((4, 4), np.float32), "nan": np.ones(4, np.float32),
        "counts": np.array([2**60, 5]), "none": np.zeros((0, 2), np.float32), "scalar": np.float32(1).reshape(()),
        "flags": np.array([True, False]),
    }  # fmt: skip
    b = {n: v.copy() for n, v in a.items()}
    b["from zero"][:] = 1
    b["to zero"][:] = 0
    b["nan"][2] = np.nan
    b["counts"][0] += 1
    b["flags"][0] = False
    found = compared(write(tmp_path / "a", a), write(tmp_path / "b", b))
    record = found.as_json()
    json.dumps(record, allow_nan=False)
    rows = {t["name"]: t for t in record["tensors"]}
    assert {n for n, t in rows.items() if t["status"] == "moved"} == a.keys() - {"none", "scalar"}
    assert rows["from zero"]["relative_l2"] is None  # infinite: JSON has no such number
    assert rows["to zero"]["relative_l2"] == 1.0 and rows["to zero"]["cosine"] == 0.0
    assert rows["nan"]["nonfinite"] == 1 and rows["nan"]["density"] == 0.25
    assert rows["counts"]["density"] == 0.5 and rows["none"]["density"] == 0.0


def test_edges_keep_the_record(tmp_path: Path) -> None:
    import jsonschema

    rng = np.random.default_rng(0)
    a = model(shapes={"layers.0.w": (40, 30), "layers.1.w": (40, 30)})
    step = (rng.normal(size=(40, 1)) @ rng.normal(size=(1, 30))).astype(np.float32)
    b = a | {"layers.1.w": a["layers.1.w"] + step}
    found = compared(write(tmp_path / "a", a), write(tmp_path / "b", b), names=("A", "B")).as_json()
    assert [e["kind"] for e in found["edges"]] == ["low_rank_delta", "sparse_delta"]  # ranked
    for edge in found["edges"]:
        jsonschema.validate(edge, SCHEMA)
        assert list(edge) == SCHEMA["required"] and (edge["target"], edge["sources"]) == ("B", ["A"])
        assert edge["command"] is None
    assert found["edges"][0]["bytes_freed"] == 2 * 40 * 30 * 4 - 1 * (40 + 30) * 4


def test_threads_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "UNIT", 31)
    monkeypatch.setattr(sweep, "JOB", 31 * 8 * 5)
    paths = [write(tmp_path / "a", model()), write(tmp_path / "b", tuned(model(), 1))]
    assert compared(*paths, threads=1).as_json() == compared(*paths, threads=4).as_json()


def test_ranks_can_be_left_out(tmp_path: Path) -> None:
    found = compared(write(tmp_path / "a", model()), write(tmp_path / "b", tuned(model(), 1)), ranks=False)
    assert all(t.rank is None for t in found.tensors)
    assert [e.kind for e in found.edges] == ["sparse_delta"]
