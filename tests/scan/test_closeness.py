"""Closeness against plain NumPy: densities, norms, signs, ranks, what deltas and masks would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core import sweep
from nett.core.edge import Edge
from nett.scan.closeness import closeness
from nett.scan.protocol import Findings
from support.merging import multi_task_vector, task_masks
from support.scanning import as_stored, edges, in_every_container, model, tuned, write
from support.tensors import Array

Model = dict[str, Array]


def flat(model: Model) -> Array:
    return np.concatenate([a.ravel() for a in model.values()]).astype(np.float64)


def entropy_rank(matrix: Array) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007)."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    share = values[values > values[0] * 1e-7] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def figures(base: Model, other: Model) -> dict[str, Any]:
    a, b = flat(base), flat(other)
    both = (a != 0) & (b != 0)
    deltas = [other[n].astype(np.float64) - base[n] for n in base if base[n].ndim == 2]
    weights = [float((d**2).sum()) for d in deltas]
    shares = [entropy_rank(d) / min(d.shape) for d in deltas]
    return {
        "delta_density": float(np.mean(a != b)),
        "norm_ratio": float(np.linalg.norm(b - a) / np.linalg.norm(a)),
        "cosine": float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        "sign_agreement": float(np.mean(np.sign(a[both]) == np.sign(b[both]))),
        "effective_rank_share": float(np.average(shares, weights=weights)),
        "rank_sampled": False,
        "nonfinite": 0,
    }


def patch(base: Model, other: Model, itemsize: int = 4) -> int:
    """Bytes that lossless patches save: new values, and a bit an element or 32 bits a new value to place them."""
    saved = 0
    for name, ground in base.items():
        changed = int((ground != other[name]).sum())
        cost = changed * itemsize + min(-(-ground.size // 8), 4 * changed)
        saved += max(0, ground.size * itemsize - cost)
    return saved


def of_kind(said: Findings, kind: str, target: str) -> Edge:
    (found,) = [e for e in edges(said, kind) if e.target == target]
    return found


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("unit", [37, sweep.UNIT])
def test_figures_of_one_fine_tune(tmp_path: Path, dtype: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "UNIT", unit)
    base, other = as_stored(model(), dtype), as_stored(tuned(model(), 1), dtype)
    paths = [write(tmp_path / "base", base, dtype), write(tmp_path / "m", other, dtype)]
    said = closeness(paths)
    assert said.figures["compared"] == 1 and said.figures["base"] == paths[0]
    expected = figures(base, other)
    found = dict(said.figures[paths[1]])
    assert found.keys() == expected.keys()
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-6)
    edge = of_kind(said, "sparse_delta", paths[1])
    assert edge.sources == (paths[0],) and edge.guarantee == "exact" and edge.error == 0
    assert edge.bytes_freed == patch(base, other, 2 if dtype != "F32" else 4)


def test_a_planted_low_rank_difference(tmp_path: Path) -> None:
    """Two directions in one matrix, the others as they were: two factors of rank two, at a tiny error."""
    base = model(shapes={"w": (40, 30), "v": (30,)})
    rng = np.random.default_rng(5)
    step = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30))).astype(np.float32)
    other = base | {"w": base["w"] + step}
    paths = [write(tmp_path / "base", base), write(tmp_path / "m", other)]
    said = closeness(paths)
    edge = of_kind(said, "low_rank_delta", paths[1])
    assert edge.guarantee == "measured"
    delta = other["w"].astype(np.float64) - base["w"]
    values = np.linalg.svd(delta, compute_uv=False)
    held = np.cumsum(values**2) / (values**2).sum()
    rank = int(np.searchsorted(held, 0.99)) + 1
    assert rank == 2
    assert edge.bytes_freed == 40 * 30 * 4 - rank * (40 + 30) * 4 + 30 * 4  # v needs nothing at all
    lost = (1 - held[rank - 1]) * (values**2).sum()
    expected = np.sqrt(max(lost, 0.0) / (flat(other) ** 2).sum())
    assert edge.error == pytest.approx(expected, abs=1e-7)
    exact = of_kind(said, "sparse_delta", paths[1])
    assert exact.guarantee == "exact" and exact.bytes_freed == patch(base, other) < edge.bytes_freed
    assert all(e.command is None for e in edges(said))  # nothing writes deltas yet


def test_several_fine_tunes(tmp_path: Path) -> None:
    """Signs against each other and against the sum; TALL-masks' bytes and error against its formula."""
    base = model()
    others = [tuned(base, seed, share=0.4) for seed in (1, 2, 3)]
    paths = [write(tmp_path / n, m) for n, m in zip(("base", "a", "b", "c"), (base, *others), strict=True)]
    said = closeness(paths)
    taus = np.stack([(flat(m).astype(np.float32) - flat(base).astype(np.float32)) for m in others])
    moved = taus != 0
    contested = moved.sum(axis=0) >= 2
    against = (taus > 0).any(axis=0) & (taus < 0).any(axis=0)
    assert said.figures["sign_conflict"] == pytest.approx(against[contested].mean(), rel=1e-12)
    total = taus.sum(axis=0)
    vector = multi_task_vector(base, others)
    masks = task_masks(base, others, vector, [0.4] * 3)
    held = sum(a.nbytes for a in base.values())
    for place, (path, other) in enumerate(zip(paths[1:], others, strict=True)):
        with_sum = (np.sign(taus[place]) == np.sign(total))[moved[place]]
        assert said.figures[path]["agrees_with_elected_sign"] == pytest.approx(with_sum.mean(), rel=1e-12)
        rebuilt = {n: base[n] + np.where(masks[place][n], vector[n], np.float32(0)) for n in base}
        error = np.linalg.norm(flat(rebuilt) - flat(other)) / np.linalg.norm(flat(other))
        edge = of_kind(said, "multi_task_vector", path)
        assert edge.error == pytest.approx(error, rel=1e-4)
        shared = sum(a.nbytes // 3 + -(-a.size // 8) for a in base.values())
        assert edge.bytes_freed == held - shared
        assert edge.command is not None and edge.command.startswith("nett merge tall_masks --base")


def test_its_command_does_what_the_finding_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that scan foretells is the one that the merge measures, the bytes those that it saves."""
    import json
    import shlex

    from support.cli import nett

    base = model(shapes={f"layers.{i}.w": (64, 48) for i in range(3)})
    paths = [write(tmp_path / "base", base)]
    paths += [write(tmp_path / f"m {i}", tuned(base, i)) for i in (1, 2)]
    found = edges(closeness(paths), "multi_task_vector")
    assert len(found) == 2 and found[0].command == found[1].command
    out = tmp_path / "out"
    words = [str(out) if w == "OUT" else w for w in shlex.split(str(found[0].command))]
    nett(*words[1:], "--no-speak").succeeded()
    receipt = json.loads((out / "nett.json").read_text())
    tasks = {t["name"]: t for t in receipt["tasks"]}
    for edge in found:
        measured = tasks[Path(edge.target).name]["relative_l2"]
        assert edge.error == pytest.approx(measured, rel=1e-5)
    stored = receipt["bytes_after"]  # the vector and the masks; base stays where it is
    held = sum(a.nbytes for a in base.values())
    assert sum(e.bytes_freed for e in found) == pytest.approx(2 * held - stored, rel=0.05)


def test_every_container(tmp_path: Path) -> None:
    base, other = model(), tuned(model(), 1)
    ground = in_every_container(tmp_path / "base", base)
    tuned_paths = in_every_container(tmp_path / "tuned", other)
    expected = figures(base, other)
    names = list(ground)
    for i, container in enumerate(names):
        path = tuned_paths[names[i - 1]]  # of another container than the base
        said = closeness([ground[container], path])
        assert {k: said.figures[path][k] for k in expected} == pytest.approx(expected, rel=1e-6)


def test_types_that_differ(tmp_path: Path) -> None:
    """A float32 base and a bfloat16 fine-tune are compared by value."""
    base, other = model(), as_stored(tuned(model(), 1), "BF16")
    paths = [write(tmp_path / "base", base), write(tmp_path / "m", other, "BF16")]
    found = closeness(paths).figures[paths[1]]
    assert {k: found[k] for k in figures(base, other)} == pytest.approx(figures(base, other), rel=1e-6)


def test_nothing_of_unrelated_models(tmp_path: Path) -> None:
    other = {f"other.{n}": a for n, a in model(1).items()}
    reshaped = {n: a.T.copy() for n, a in model(2).items() if a.ndim == 2}
    for rest in (other, reshaped):
        said = closeness([write(tmp_path / "a", model()), write(tmp_path / "b", rest)])
        assert said.found == () and said.figures == {"compared": 0}
    assert closeness([write(tmp_path / "a", model())]).figures == {"compared": 0}


def test_models_of_one_shape_and_other_training(tmp_path: Path) -> None:
    """Everything differs: they are compared, and no delta is smaller than the model."""
    paths = [write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2))]
    said = closeness(paths)
    assert said.found == ()
    assert said.figures[paths[1]]["delta_density"] == 1.0
    assert said.figures[paths[1]]["norm_ratio"] == pytest.approx(np.sqrt(2), rel=0.1)


def test_several_models_of_other_training_share_nothing(tmp_path: Path) -> None:
    """They are no fine-tunes of the first: one vector for all of them is not proposed, unless it is asked for."""
    paths = [write(tmp_path / n, model(i)) for i, n in enumerate("abc")]
    assert closeness(paths).found == ()
    assert {e.kind for e in edges(closeness(paths, near=2.0))} == {"multi_task_vector"}


def test_share_that_must_agree(tmp_path: Path) -> None:
    base = model()
    other = {n: a for n, a in base.items() if "layers" in n} | {"new": model(9)["lm_head.weight"]}
    paths = [write(tmp_path / "a", base), write(tmp_path / "b", other)]
    common = sum(a.nbytes for n, a in other.items() if n != "new") / sum(a.nbytes for a in other.values())
    assert closeness(paths, shared=common - 0.01).figures["compared"] == 1
    assert closeness(paths, shared=common + 0.01).figures["compared"] == 0


def test_what_is_not_finite_is_counted_and_left_out(tmp_path: Path) -> None:
    base = model()
    others = [tuned(base, seed) for seed in (1, 2)]
    others[0]["model.norm.weight"][3] = np.nan
    others[0]["lm_head.weight"][0, 0] = -np.inf
    paths = [write(tmp_path / n, m) for n, m in zip(("base", "a", "b"), (base, *others), strict=True)]
    said = closeness(paths)
    found = said.figures[paths[1]]
    assert found["nonfinite"] == 2 and said.figures[paths[2]]["nonfinite"] == 0
    assert all(np.isfinite(v) for v in found.values())
    assert {e.target for e in edges(said, "multi_task_vector")} == {paths[2]}  # masks give no NaN back
    assert of_kind(said, "sparse_delta", paths[1]).guarantee == "exact"  # a patch does


def test_a_fine_tune_that_is_zero(tmp_path: Path) -> None:
    """No relative error can be told of it; nothing is called lossless that is not."""
    base = model(shapes={"w": (40, 30)})
    rng = np.random.default_rng(5)
    ground = {"w": (rng.normal(size=(40, 1)) @ rng.normal(size=(1, 30)) + 1e-3 * base["w"]).astype(np.float32)}
    paths = [write(tmp_path / "a", ground), write(tmp_path / "b", {"w": np.zeros((40, 30), np.float32)})]
    said = closeness(paths)
    low = of_kind(said, "low_rank_delta", paths[1])
    assert low.error is None and low.guarantee == "measured"
    assert said.figures[paths[1]]["norm_ratio"] == pytest.approx(1.0)


def test_one_bit_of_a_large_integer_and_of_a_nan_counts(tmp_path: Path) -> None:
    """Changes are counted by bits, where numbers would be rounded together."""
    base = {"w": np.full(64, 2**60, np.int64), "x": np.full(64, np.nan, np.float16)}
    other = {"w": base["w"].copy(), "x": base["x"].copy()}
    other["w"][5] += 1
    other["x"].view(np.uint16)[7] ^= 1
    paths = [write(tmp_path / "a", base, "F16"), write(tmp_path / "b", other, "F16")]
    said = closeness(paths)
    assert said.figures[paths[1]]["delta_density"] == 2 / 128


def test_identical_checkpoints(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", model()), write(tmp_path / "b", model())]
    said = closeness(paths)
    edge = of_kind(said, "sparse_delta", paths[1])
    assert edge.bytes_freed == sum(a.nbytes for a in model().values())
    found = said.figures[paths[1]]
    assert (found["delta_density"], found["norm_ratio"], found["sign_agreement"]) == (0.0, 0.0, 1.0)
    assert found["cosine"] == pytest.approx(1.0) and found["effective_rank_share"] is None
