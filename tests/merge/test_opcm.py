"""OPCM (P63) against the full decomposition of its formula, and its state: the same bits however the models come."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.cards import find_card
from nett.core.checkpoint.safetensors import SafetensorsCheckpoint
from nett.core.errors import UsageError
from nett.merge import carrier, engine, opcm
from nett.merge.state import STATE, TENSORS, read_state
from support.cli import nett, nett_process
from support.forge import forge
from support.merging import Family, Model, assert_same, family
from support.tensors import Array, read_tensors, write_tensors

ALPHAS = (0.0, 0.3, 0.5, 0.9, 1.0)
PIECES: dict[str, Any] = {"chunk": 128, "small": 512, "mark": 1024, "threads": 2}


# -- the formula ------------------------------------------------------------------------------------------------


def projected(merged: Array, tau: Array, alpha: float, rank: int | None = None) -> Array:
    """Step 2 of P63, algorithm 1, with all singular vectors: tau without its part in the first r rows and columns and
    on the diagonal. ``rank``: where the diagonal ends; r never lies beyond."""
    u, s, vt = np.linalg.svd(merged, full_matrices=True)
    rank = s.size if rank is None else rank
    share = np.cumsum(s) / s.sum()
    r = rank if alpha == 1 else min(rank, int(np.argmax(share > alpha)))
    p = u.T @ tau @ vt.T
    p[range(rank), range(rank)] = 0
    p[:r, :r] = 0
    return u @ p @ vt


def continual(base: Model, tuned: list[Model], alpha: float, plain: tuple[str, ...] = ()) -> Model:
    """P63, algorithm 1, as it is written: Delta and lambda after every model, in float64."""
    taus = [{n: m[n].astype(np.float64) - base[n] for n in base} for m in tuned]

    def norm(model: Model) -> float:
        return float(np.sqrt(sum(np.sum(np.square(a)) for a in model.values())))

    delta, scale, norms = dict(taus[0]), 1.0, [norm(taus[0])]
    for tau in taus[1:]:
        norms.append(norm(tau))
        total = {}
        for n, t in tau.items():
            linear = t.ndim == 2 and n not in plain
            total[n] = scale * delta[n] + (projected(delta[n], t, alpha) if linear else t)
        scale = norm(total) / float(np.mean(norms))
        delta = {n: a / scale for n, a in total.items()}
    return {n: base[n] + delta[n] for n in base}


def matrices(shape: tuple[int, ...], count: int, seed: int, kind: Any = np.float64) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape) * 0.1, kind) for _ in range(count)]


def off(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("shape", [(30, 30), (40, 17), (17, 40), (6, 1), (1, 6), (1, 1), (130, 90)])
def test_thin_is_full(shape: tuple[int, int], alpha: float) -> None:
    """Square, tall and wide, over four models: far below 1e-6 in float64; in float32 from one rounding a step."""
    base, *tuned = matrices(shape, 5, 1)
    expected = continual({"w": base}, [{"w": m} for m in tuned], alpha)["w"]
    assert off(opcm(base, tuned, alpha=alpha) - base, expected - base) < 1e-9
    nothing = np.zeros(shape, np.float32)
    singles = [m.astype(np.float32) for m in tuned[:2]]
    expected = continual({"w": nothing}, [{"w": m} for m in singles], alpha)["w"]
    assert off(opcm(nothing, singles, alpha=alpha), expected) < 1e-6


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
def test_behind_a_rank_deficient_task_vector(shape: tuple[int, int], alpha: float) -> None:
    """An adapter's task vector has rank 3: beyond, singular vectors are arbitrary, and so the diagonal ends there."""
    rng = np.random.default_rng(2)
    low = rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1]))
    tau = rng.normal(size=shape)
    nothing = np.zeros(shape)
    total = low + projected(low, tau, alpha, rank=3)
    expected = total / np.linalg.norm(total) * (np.linalg.norm(low) + np.linalg.norm(tau)) / 2
    assert off(opcm(nothing, [low, tau], alpha=alpha), expected) < 1e-9
    found = opcm(*(nothing.astype(np.float32), [low.astype(np.float32), tau.astype(np.float32)]), alpha=alpha)
    assert off(found, expected) < 1e-6


@pytest.mark.parametrize("smallest", [1e-3, 1e-5, 1e-9])
def test_singular_values_far_apart(smallest: float) -> None:
    """Down to what a Gram matrix can tell, and below it."""
    rng = np.random.default_rng(3)
    u, _ = np.linalg.qr(rng.normal(size=(25, 9)))
    v, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    merged = u * np.geomspace(1, smallest, 9) @ v.T
    tau = rng.normal(size=(25, 9))
    total = merged + projected(merged, tau, 0.5)
    expected = total / np.linalg.norm(total) * (np.linalg.norm(merged) + np.linalg.norm(tau)) / 2
    assert off(opcm(np.zeros((25, 9)), [merged, tau], alpha=0.5), expected) < 1e-6


def test_ends_of_alpha() -> None:
    """0 closes the diagonal alone; 1 every pair of singular directions, so that of square matrices the first stays."""
    first, second = matrices((10, 10), 2, 4)
    u, _, vt = np.linalg.svd(first)
    nothing = np.zeros_like(first)
    alone = opcm(nothing, [first, second], alpha=1.0)
    assert abs(np.sum(alone * first) / np.linalg.norm(alone) / np.linalg.norm(first) - 1) < 1e-12
    open_ = opcm(nothing, [first, second], alpha=0.0)
    seen = u.T @ (open_ / np.linalg.norm(open_)) @ vt.T
    wanted = u.T @ second @ vt.T
    np.fill_diagonal(wanted, np.linalg.svd(first, compute_uv=False))
    np.testing.assert_allclose(seen, wanted / np.linalg.norm(wanted), atol=1e-12)


def test_worked_example() -> None:
    """diag(3, 1), then ones: at alpha 0.75 direction 1 is closed (3/4 of the sum), the diagonal too; what is left of the
    ones is off the diagonal. Norms: sqrt(10), 2; the merged vector [[3, 1], [1, 1]] has sqrt(12)."""
    merged = opcm(np.zeros((2, 2)), [np.diag([3.0, 1.0]), np.ones((2, 2))], alpha=0.75)
    factor = (np.sqrt(10) + 2) / 2 / np.sqrt(12)
    np.testing.assert_allclose(merged, factor * np.array([[3.0, 1.0], [1.0, 1.0]]), rtol=1e-12)


def test_what_is_no_matrix_is_added_up() -> None:
    for shape in ((7,), (2, 3, 4), ()):
        base, a, b = matrices(shape, 3, 5)
        total = a + b - 2 * base
        norms = np.linalg.norm((a - base).ravel()), np.linalg.norm((b - base).ravel())
        expected = base + total / np.linalg.norm(total.ravel()) * np.mean(norms)
        np.testing.assert_allclose(opcm(base, [a, b]), expected, rtol=1e-12)


def test_models_that_cancel_or_change_nothing() -> None:
    base, delta = np.array([1.0, -2.0, 0.5]), np.array([0.25, 0.5, -0.125])  # without rounding
    assert np.array_equal(opcm(base, [base + delta, base - delta]), base)
    matrix, other = matrices((4, 3), 2, 7)
    assert np.array_equal(opcm(matrix, [matrix, matrix]), matrix)
    assert off(opcm(matrix, [matrix, other]) - matrix, (other - matrix) / 2) < 1e-12  # half of the mean norm is 0


def test_order_matters() -> None:
    base, *tuned = matrices((12, 8), 4, 8)
    found = [opcm(base, [tuned[i] for i in order]) for order in itertools.permutations(range(3))]
    for a, b in itertools.combinations(found, 2):
        assert off(a, b) > 1e-4


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["f32", "bf16", "mixed"])
def test_command_line_is_the_formula(tmp_path: Path, stored: str) -> None:
    """Norms over the whole model, embeddings added up plainly, the order given."""
    models = family(tmp_path, stored)
    for order in ((0, 1, 2), (2, 0, 1)):
        found = models.merge("opcm", "--alpha", "0.3", models=order)
        expected = continual(models.base, [models.tuned[i] for i in order], 0.3, plain=("embed.weight",))
        for name, values in expected.items():
            step = {"F32": 2e-7, "BF16": 2.0**-8, "F16": 2.0**-11}[models.stored[name]]
            near = step * np.abs(values) + 1e-6 * np.abs(values - models.base[name]).max()
            assert np.all(np.abs(found[name] - values) <= near), name


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("five"), "mixed", count=5)


@pytest.fixture(scope="module")
def at_once(five: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``out`` and ``state`` of all five models in one go."""
    folder = tmp_path_factory.mktemp("at-once")
    merge(five, range(5), folder / "out", "--state", str(folder / "state"))
    return folder


def merge(models: Family, which: Any, out: Path, *words: str) -> Any:
    paths = [models.paths[i] for i in which]
    return nett("merge", "opcm", *paths, "--base", models.base_path, "--out", str(out), "--no-speak", *words)


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def held(state: Path) -> tuple[bytes, Any]:
    """What a state says, but for the paths of its models."""
    record = json.loads((state / STATE).read_text())
    for model in (record["base"], *record["models"]):
        del model["path"]
    return (state / TENSORS).read_bytes(), record


@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (4,), (1, 2, 3, 4), (2, 3)])
def test_split_anywhere_the_bits_are_the_same(
    tmp_path: Path, five: Family, at_once: Path, cuts: tuple[int, ...]
) -> None:
    state = tmp_path / "state"
    for start, stop in itertools.pairwise((0, *cuts, 5)):
        merge(five, range(start, stop), tmp_path / f"out{stop}", "--state", str(state)).succeeded()
    assert bits(tmp_path / "out5") == bits(at_once / "out")
    assert held(state) == held(at_once / "state")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*(f"out{s}" for s in (*cuts, 5)), "state"])


def test_without_a_state_too_and_nothing_is_left(tmp_path: Path, five: Family, at_once: Path) -> None:
    for threads in ("1", "3"):
        merge(five, range(5), tmp_path / f"out{threads}", "--threads", threads).succeeded()
        assert bits(tmp_path / f"out{threads}") == bits(at_once / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out1", "out3"]
    assert {p.name for p in (tmp_path / "out1").iterdir()} == {"model.safetensors", "nett.json", "nett.html"}


def test_state_is_a_checkpoint_and_norms(five: Family, at_once: Path) -> None:
    """float32 tensors that any reader opens, and for each tensor the squared norms of the task vectors."""
    read = read_tensors(at_once / "state" / TENSORS)
    record = json.loads((at_once / "state" / STATE).read_text())
    assert {n: a.dtype for n, a in read.items()} == dict.fromkeys(five.base, np.dtype(np.float32))
    assert [m["name"] for m in record["models"]] == ["m1", "m2", "m3", "m4", "m5"]
    for name, base in five.base.items():
        squares = [np.sum(np.square(m[name].astype(np.float64) - base)) for m in five.tuned]
        np.testing.assert_allclose(record["numbers"][name], squares, rtol=1e-6)
    total = sum(np.sum(np.square(a.astype(np.float64))) for a in read.values())
    norms = np.sqrt(np.sum(list(record["numbers"].values()), axis=0))
    for name, merged in read_tensors(at_once / "out").items():
        expected = five.base[name] + read[name] * (norms.mean() / np.sqrt(total))
        np.testing.assert_allclose(merged, expected, rtol=2.0**-7, atol=1e-6)


def test_a_model_that_is_in_the_state_is_left_out_and_said(tmp_path: Path, five: Family, at_once: Path) -> None:
    """Also under another name and in other files; and when all are, the merged model is written from the state."""
    copy = tmp_path / "renamed"
    blob = (Path(five.paths[1]) / "model.safetensors").read_bytes()
    length = int.from_bytes(blob[:8], "little")
    copy.mkdir()
    padded = (length + 8).to_bytes(8, "little") + blob[8 : 8 + length] + b" " * 8 + blob[8 + length :]
    (copy / "model.safetensors").write_bytes(padded)
    said = nett("merge", "opcm", five.paths[0], str(copy), five.paths[0], "--base", five.base_path, "--out",
                str(tmp_path / "twice"), "--state", str(tmp_path / "state"), "--no-speak").succeeded()  # fmt: skip
    assert f"{five.paths[0]} is given twice" in said.err
    said = merge(five, range(5), tmp_path / "out", "--state", str(tmp_path / "state")).succeeded()
    assert "holds 2 models: " in said.err and f"{five.paths[0]} is in the state already" in said.err
    assert f"{five.paths[1]} is in the state already (the same tensors as renamed, {copy})" in said.err
    assert bits(tmp_path / "out") == bits(at_once / "out")
    notes = json.loads((tmp_path / "out" / "nett.json").read_text())["notes"]
    assert sum("was left out" in note for note in notes) == 2
    before = held(tmp_path / "state"), (tmp_path / "state" / TENSORS).stat().st_mtime_ns
    merge(five, [3, 1], tmp_path / "again", "--state", str(tmp_path / "state")).succeeded()
    assert bits(tmp_path / "again") == bits(at_once / "out")
    assert (held(tmp_path / "state"), (tmp_path / "state" / TENSORS).stat().st_mtime_ns) == before


def test_models_from_a_store_are_told_apart(tmp_path: Path, five: Family, at_once: Path) -> None:
    """They have no files of their own; what counts are their tensors, so that the state takes either."""
    store = tmp_path / "store"
    nett("store", "add", *five.paths[:3], "--into", str(store)).succeeded()
    stored = [str(store / Path(p).name) for p in five.paths[:3]]
    words = ("--base", five.base_path, "--no-speak", "--state", str(tmp_path / "state"))
    nett("merge", "opcm", *stored, "--out", str(tmp_path / "three"), *words).succeeded()
    said = merge(five, range(5), tmp_path / "out", "--state", str(tmp_path / "state")).succeeded()
    assert said.err.count("is in the state already") == 3
    assert bits(tmp_path / "out") == bits(at_once / "out")
    assert "came out with the same bytes" in nett("verify", str(tmp_path / "out"), "--rerun").succeeded().out


def test_verify_and_rerun(tmp_path: Path, five: Family) -> None:
    """Done again from the models themselves, since the state has moved on; and said where one is gone."""
    gone = tmp_path / "gone"
    shutil.copytree(five.paths[0], gone)
    state = ("--state", str(tmp_path / "state"))
    words = ("--base", five.base_path, "--no-speak", *state)
    nett("merge", "opcm", str(gone), "--out", str(tmp_path / "first"), *words).succeeded()
    merge(five, [1, 2], tmp_path / "second", *state).succeeded()
    merge(five, [3], tmp_path / "third", *state).succeeded()
    for out in ("first", "second", "third"):
        said = nett("verify", str(tmp_path / out), "--rerun").succeeded()
        assert "rerun: 1 file(s) came out with the same bytes" in said.out
    receipt = json.loads((tmp_path / "second" / "nett.json").read_text())
    assert [m["name"] for m in receipt["state"]["models"]] == ["gone", "m2", "m3"]
    assert [i["name"] for i in receipt["inputs"]] == ["base", "m2", "m3"]
    shutil.rmtree(gone)
    said = nett("verify", str(tmp_path / "second"), "--rerun").succeeded()
    assert f"rerun: {gone} is not there any more, so it was not done again" in said.out


def test_a_state_is_verified(tmp_path: Path, five: Family) -> None:
    """Its file, its numbers, and the models that are in it, which may be gone but not others."""
    state, gone = tmp_path / "state", tmp_path / "gone"
    shutil.copytree(five.paths[0], gone)
    words = ("--base", five.base_path, "--no-speak", "--state", str(state))
    nett("merge", "opcm", str(gone), five.paths[1], "--out", str(tmp_path / "out"), *words).succeeded()
    said = nett("verify", str(state), "--json", str(tmp_path / "found.json"), "--rerun").succeeded().out
    assert "model gone: " in said and "base: " in said and "sha256 equal" in said and "verify the output" in said
    assert len(json.loads((tmp_path / "found.json").read_text())["checks"]) == 6
    file = gone / "model.safetensors"
    file.write_bytes(Path(five.paths[2], "model.safetensors").read_bytes())
    nett("verify", str(state)).failed(4, "model gone")
    shutil.rmtree(gone)
    assert "is not there any more" in nett("verify", str(state)).succeeded().out
    record = json.loads((state / STATE).read_text())
    name = next(n for n, v in record["numbers"].items() if v)
    short = record | {"numbers": record["numbers"] | {name: [1.0]}}
    (state / STATE).write_text(json.dumps(short))
    nett("verify", str(state)).failed(4, "numbers")
    (state / STATE).write_text(json.dumps(record))
    blob = bytearray((state / TENSORS).read_bytes())
    blob[-1] ^= 1
    (state / TENSORS).write_bytes(blob)
    nett("verify", str(state)).failed(4, f"file {TENSORS}")
    (state / STATE).unlink()
    nett("verify", str(state)).failed(3, "carries no receipt")


def spoil(state: Path, what: str, five: Family) -> list[str]:
    """Make a state unfit in one way; further words of the command line."""
    record = json.loads((state / STATE).read_text())
    if what == "alpha":
        return ["--alpha", "0.25"]
    if what == "base":
        return ["--base", five.paths[4]]
    if what == "shape":
        tensors = read_tensors(state / TENSORS) | {"norm": np.zeros(4, np.float32)}
        write_tensors(state / TENSORS, tensors)
    elif what == "tensors":
        tensors = read_tensors(state / TENSORS)
        del tensors["norm"]
        write_tensors(state / TENSORS, tensors)
    elif what == "bytes":
        blob = bytearray((state / TENSORS).read_bytes())
        blob[-1] ^= 1
        (state / TENSORS).write_bytes(blob)
    elif what == "version":
        record["schema"] = 2
    elif what == "method":
        record["method"] = "merge/other"
    elif what == "field":
        del record["numbers"]
    elif what == "numbers":
        record["numbers"]["norm"] = []
    elif what == "torn":
        (state / STATE).write_text("{")
        return []
    elif what == "other folder":
        (state / STATE).unlink()
        return []
    (state / STATE).write_text(json.dumps(record))
    return []


@pytest.mark.parametrize(
    ("what", "said"),
    {
        "alpha": "was merged with alpha = 0.5, not 0.25",
        "base": "was merged over the base 'base'",
        "shape": "holds 'norm' with shape [4], but the models have [19]",
        "tensors": "holds 'norm' with shape None, but the models have [19]",
        "bytes": "was changed since nett wrote it",
        "version": "is a state of version 2",
        "method": "is a state of merge/other, not of merge/opcm",
        "field": "is not a state: KeyError 'numbers'",
        "numbers": "lacks numbers of 'norm'",
        "torn": "is not a state: JSONDecodeError",
        "other folder": "is not a state: it has no state.json",
    }.items(),
)
def test_states_that_do_not_fit_are_refused(tmp_path: Path, five: Family, at_once: Path, what: str, said: str) -> None:
    state = tmp_path / "state"
    shutil.copytree(at_once / "state", state)
    words = spoil(state, what, five)
    before = {f.name: f.read_bytes() for f in state.iterdir()}
    merge(five, [0], tmp_path / "out", "--state", str(state), *words).failed(3, str(state), said)
    assert {f.name: f.read_bytes() for f in state.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]


def test_states_in_bad_places(tmp_path: Path, five: Family) -> None:
    merge(five, [0], tmp_path / "out", "--state", str(tmp_path / "out" / "state")).failed(3, "must lie apart")
    merge(five, [0], tmp_path / "s" / "out", "--state", str(tmp_path / "s")).failed(3, "must lie apart")
    merge(five, [0], tmp_path / "out", "--state", five.paths[2]).failed(3, "is not a state: it has no state.json")
    (tmp_path / "file").write_text("x")
    merge(five, [0], tmp_path / "out", "--state", str(tmp_path / "file")).failed(3, "is not a state")
    nett("merge", "ties", five.paths[0], "--base", five.base_path, "--out", str(tmp_path / "out"), "--state",
         str(tmp_path / "state")).failed(2, "state")  # fmt: skip
    with pytest.raises(UsageError, match="keeps no state"):
        engine.run(
            find_card("merge/ties"), five.paths, {}, out=tmp_path / "out", base=Path(five.base_path), state=tmp_path
        )
    assert "--state" in nett("merge", "opcm", "--help").out and "--state" not in nett("merge", "ties", "--help").out


def test_float64_models_onto_a_float32_state(tmp_path: Path, five: Family) -> None:
    """Refused, since the bits would be others than in one go; the other way round the state is float64 already."""
    wide = tmp_path / "wide"
    write_tensors(wide / "model.safetensors", five.tuned[2], "F64")
    words = ("--base", five.base_path, "--no-speak")
    merge(five, [0], tmp_path / "a", "--state", str(tmp_path / "narrow")).succeeded()
    nett("merge", "opcm", str(wide), "--out", str(tmp_path / "b"), *words, "--state", str(tmp_path / "narrow")).failed(
        3, "holds float32 numbers", "nett convert"
    )
    nett("merge", "opcm", str(wide), "--out", str(tmp_path / "c"), *words, "--state", str(tmp_path / "s")).succeeded()
    merge(five, [0], tmp_path / "d", "--state", str(tmp_path / "s")).succeeded()
    nett("merge", "opcm", str(wide), five.paths[0], "--out", str(tmp_path / "e"), *words).succeeded()
    assert bits(tmp_path / "d") == bits(tmp_path / "e")


def test_dry_run_says_what_is_new_and_writes_nothing(tmp_path: Path, five: Family, at_once: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(at_once / "state", state)
    said = nett("--dry-run", "merge", "opcm", five.paths[1], "--base", five.base_path, "--out", str(tmp_path / "out"),
                "--state", str(state)).succeeded()  # fmt: skip
    notes = json.loads(said.out)["notes"]
    assert "holds 5 models" in notes[0] and "is in the state already" in notes[1] and "told from paths" in notes[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]


def test_dry_run_reads_headers_only(
    tmp_path: Path, five: Family, at_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> Any:
        raise AssertionError("a tensor was read")

    state = tmp_path / "state"
    shutil.copytree(at_once / "state", state)
    monkeypatch.setattr(SafetensorsCheckpoint, "read", read)
    monkeypatch.setattr("nett.merge.state.file_sha256", read)
    words = ("opcm", *five.paths[:2], "--base", five.base_path, "--out", str(tmp_path / "out"))
    for more in ((), ("--state", str(tmp_path / "new")), ("--state", str(state))):
        nett("--dry-run", "merge", *words, *more).succeeded()
    nett("--dry-run", "merge", *words, "--alpha", "0.25", "--state", str(state)).failed(3, "was merged with alpha")


# -- interrupted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_death_at_a_write_step(tmp_path: Path, five: Family, every: int) -> None:
    """Three models, two of them new: whenever it dies, the state is the old or the new one, whole; run again, output
    and state are those of an undisturbed run, and nothing is left beside them. All the steps at which the new state
    takes the old one's place, and every fifth (or each) of the others."""
    old = tmp_path / "old"
    merge(five, [0], tmp_path / "first", "--state", str(old)).succeeded()
    call = {"call": "merge", "method": "opcm", "models": five.paths[:3], "base": five.base_path, **PIECES, "threads": 1}

    def arguments(name: str) -> dict[str, Any]:
        shutil.copytree(old, tmp_path / name / "state")
        return {**call, "out": str(tmp_path / name / "out"), "state": str(tmp_path / name / "state")}

    kinds = forge().run("support.work:kinds", **arguments("calm"))
    steps, renames = len(kinds), [step for step, kind in enumerate(kinds) if kind.startswith("rename ")]
    expected = bits(tmp_path / "calm" / "out"), held(tmp_path / "calm" / "state")
    assert steps > 40 and expected[1] != held(old)
    replacing = {step for rename in renames for step in range(rename - 2, rename + 4)}
    assert len(renames) == 3  # the old state away, the new one in place, the output in place
    for step in sorted({*range(0, steps, every), *replacing} & {*range(steps)}):
        given, place = arguments(f"at{step}"), tmp_path / f"at{step}"
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, **given)
        assert forge().wait().code == 77
        found = read_state(place / "state")
        assert found is not None and held(found.place) in (held(old), expected[1]), step
        forge().run("support.work:counted", **given | ({"overwrite": True} if (place / "out").exists() else {}))
        assert (bits(place / "out"), held(place / "state")) == expected, step
        assert sorted(p.name for p in place.iterdir()) == ["out", "state"], step
        shutil.rmtree(place)


class Cut(Exception):
    """The moment at which the test stops the work."""


def test_decompositions_are_done_once(tmp_path: Path, five: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a matrix and model after the first, though the kernel runs twice; and those done before an interruption,
    not again."""
    real, done, stop = np.linalg.eigh, [0], [99]

    def counted(matrix: Array) -> Any:
        if done[0] == stop[0]:
            raise Cut
        done[0] += 1
        return real(matrix)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    monkeypatch.setattr(carrier, "MARK_BYTES", 1)
    card = find_card("merge/opcm")
    options: dict[str, Any] = {"base": Path(five.base_path), "speak": False, "threads": 1}
    matrices_of_model = 2
    engine.run(card, five.paths, {}, out=tmp_path / "calm", **options)
    assert done == [matrices_of_model * 4]
    for state in ({}, {"state": tmp_path / "state"}):
        out = tmp_path / f"out{len(state)}"
        done[0], stop[0] = 0, 5
        with pytest.raises(Cut):
            engine.run(card, five.paths, {}, out=out, **options, **state)
        done[0], stop[0] = 0, 99
        engine.run(card, five.paths, {}, out=out, **options, **state)
        assert done == [4]  # of the second matrix
        assert bits(out) == bits(tmp_path / "calm")


def test_what_was_left_is_not_believed_blindly(tmp_path: Path, five: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    real = np.linalg.eigh
    calls = [0]

    def failing(matrix: Array) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise Cut
        return real(matrix)

    monkeypatch.setattr(carrier, "MARK_BYTES", 1)
    monkeypatch.setattr(np.linalg, "eigh", failing)
    options: dict[str, Any] = {"base": Path(five.base_path), "speak": False, "threads": 1, "state": tmp_path / "state"}
    with pytest.raises(Cut):
        engine.run(find_card("merge/opcm"), five.paths, {}, out=tmp_path / "out", **options)
    left = tmp_path / ".state.nett-partial" / TENSORS
    blob = bytearray(left.read_bytes())
    at = 8 + int.from_bytes(blob[:8], "little")
    blob[at] ^= 1
    left.write_bytes(blob)
    merge(five, range(5), tmp_path / "out", "--state", str(tmp_path / "state"), "--threads", "1").failed(
        1, str(left), "does not hold what its journal says", "Delete"
    )


def test_a_model_with_nan_leaves_the_state_alone(tmp_path: Path, five: Family) -> None:
    merge(five, [0], tmp_path / "first", "--state", str(tmp_path / "state")).succeeded()
    before = held(tmp_path / "state")
    bad = {n: a.copy() for n, a in five.tuned[1].items()}
    bad["norm"][3] = np.nan
    write_tensors(tmp_path / "bad" / "model.safetensors", bad)
    words = ["--base", five.base_path, "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"), "--no-speak"]
    # In a process of its own: here the type checker reads a model too, to look at it.
    nett_process("merge", "opcm", str(tmp_path / "bad"), *words).failed(3, "'norm' holds NaN", "element 3 of 19")
    assert held(tmp_path / "state") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "first", "state"]


# -- memory -----------------------------------------------------------------------------------------------------


def test_the_twentieth_model_takes_the_memory_of_the_second(tmp_path: Path) -> None:
    """One tensor of 4 MB in float32 beside small ones: as many models at once would take 72 MB more."""
    rng = np.random.default_rng(9)
    block = rng.normal(size=1 << 20).astype(np.float32)
    paths = []
    for i in range(21):
        values = block + np.float32(0.01) * np.roll(block, 977 * i) * (i > 0)
        write_tensors(tmp_path / f"m{i}" / "model.safetensors", {"w": values.reshape(-1, 32), "b": values[:99]}, "BF16")
        paths.append(str(tmp_path / f"m{i}"))
    base, *models = paths
    call = {"method": "opcm", "base": base, "threads": 1}
    state = str(tmp_path / "state")

    def peak(which: list[str], out: str, **more: Any) -> int:
        return int(forge().run("support.work:peak_memory", models=which, out=str(tmp_path / out), **call, **more))

    peak(models[:1], "first", state=state)
    second = peak(models[1:2], "second", state=state)
    size = sum(f.stat().st_size for f in (tmp_path / "state").iterdir())
    peak(models[2:19], "nineteen", state=state)
    twentieth = peak(models[19:], "twentieth", state=state)
    two, twenty = peak(models[:2], "two"), peak(models, "all")
    assert abs(twentieth - second) < 1 << 20, (second, twentieth)
    assert twenty < two + (8 << 20), (two, twenty)  # what the allocator keeps of what was let go
    assert sum(f.stat().st_size for f in (tmp_path / "state").iterdir()) < size + 8192  # names and norms
    assert bits(tmp_path / "all") == bits(tmp_path / "twentieth")


def test_same_tensors_whatever_the_output_type(tmp_path: Path, five: Family) -> None:
    """--dtype rounds what is written, not what is carried."""
    state = tmp_path / "state"
    merge(five, [0, 1], tmp_path / "a", "--dtype", "float16", "--state", str(state)).succeeded()
    merge(five, [2], tmp_path / "b", "--dtype", "float32", "--state", str(state)).succeeded()
    merge(five, [0, 1, 2], tmp_path / "c", "--dtype", "float32").succeeded()
    assert_same(read_tensors(tmp_path / "b"), read_tensors(tmp_path / "c"))
