"""The beds and the tuning that claims about merging rest on, at toy size; and both claims run through there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nett

pytestmark = pytest.mark.claims
ROOT = Path(nett.__file__).resolve().parents[2]
WIDTH = 16


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


def module(name: str) -> ModuleType:
    return importlib.import_module(f"claims.{name}")


@pytest.fixture(scope="module")
def bed(on_path: None) -> Any:
    return module("digits").digits_bed(0, WIDTH)


@pytest.fixture(scope="module")
def draws(bed: Any) -> dict[int, Any]:
    return {0: {t: np.arange(len(bed.data[t]["val"][1])) for t in bed.tasks}}


# -- beds -------------------------------------------------------------------------------------------------------


def test_the_digits_bed_depends_on_its_seed_only(bed: Any) -> None:
    again, other = module("digits").digits_bed(0, WIDTH), module("digits").digits_bed(1, WIDTH)
    assert np.array_equal(bed.base, again.base) and not np.array_equal(bed.base, other.base)
    assert all(np.array_equal(bed.tuned[t], again.tuned[t]) for t in bed.tasks) and len(bed.tasks) == 8
    assert bed.base.dtype == np.float32 and bed.base.size == sum(int(np.prod(s)) for s in bed.layout.values())


def test_fine_tuning_taught_each_task_and_cost_the_others(bed: Any) -> None:
    beds = module("beds")
    base, own = bed.all_correct(bed.base, "test"), bed.own_correct(bed.models, "test")
    assert beds.accuracy(own) > beds.accuracy(base) + 5
    assert all(own[t].mean() > base[t].mean() for t in bed.tasks)
    foreign = [bed.correct(bed.tuned[a], b, "test").mean() for a in bed.tasks for b in bed.tasks if a != b]
    assert 100 * np.mean(foreign) < beds.accuracy(own) - 10


def test_no_image_is_in_two_splits() -> None:
    """Of any task: the same image serves all tasks, so its split must be the same for all."""
    data = module("digits")._data(3)
    plain = data["turned0"]
    rows = {s: {x.numpy().tobytes() for x in plain[s][0]} for s in plain}
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["val"] and not rows["val"] & rows["test"]
    turned = {s: {np.rot90(x.numpy().reshape(8, 8), -1).tobytes() for x in data["turned90"][s][0]} for s in rows}
    assert turned == rows
    assert set(data["mirrored_low"]["test"][1].tolist()) == set(range(5))


def test_flat_and_named_are_each_others_inverse(bed: Any, tmp_path: Path) -> None:
    import torch

    assert np.array_equal(bed.flat(bed.tensors(bed.base)), bed.base)
    base, tuned = bed.write(tmp_path, torch.bfloat16)
    assert base.stem == "base" and [t.stem for t in tuned] == list(bed.tasks)
    (tmp_path / "one").mkdir()
    tuned[0].rename(tmp_path / "one" / "model.safetensors")
    back = bed.read_one(tmp_path / "one")
    np.testing.assert_allclose(back, bed.models[0], rtol=2**-8)


def test_sampling_error_by_hand() -> None:
    """Two tasks of 4 and 2 examples; variances 3/16 and 1/4, so sqrt(3/64 + 1/8) / 2."""
    beds = module("beds")
    a = {"x": np.array([True, True, True, False]), "y": np.array([True, False])}
    assert beds.accuracy(a) == 100 * (0.75 + 0.5) / 2
    assert beds.sampling_error(a) == pytest.approx(100 * np.sqrt(3 / 64 + 1 / 8) / 2)
    assert beds.sampling_error(a, a) == 0
    assert beds.accuracy(a, {"x": np.array([3]), "y": np.array([0])}) == 50


def test_merge8_gives_its_known_accuracies() -> None:
    beds = module("beds")
    if (why := beds.why_no_merge8()) is not None:
        pytest.skip(why)
    bed = beds.merge8()
    assert beds.accuracy(bed.own_correct(bed.models, "test")) == pytest.approx(79.8, abs=0.1)
    assert beds.accuracy(bed.all_correct(np.mean(bed.models, axis=0), "test")) == pytest.approx(67.0, abs=0.1)
    cases = list(beds.merge8_cases((0, 1)))
    assert [c.bed.size for c in cases] == ["4 tasks", "4 tasks", "8 tasks"]
    assert cases[0].bed.tasks != cases[1].bed.tasks and set(cases[2].draws) == {0, 1}
    assert not np.array_equal(cases[2].draws[0]["mnist"], cases[2].draws[1]["mnist"])


def test_without_assets_merge8_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    merging = module("merging")
    monkeypatch.setattr(merging, "digits_cases", lambda seeds: iter(()))
    for folder, why in ((None, "NETT_ASSETS is not set"), (tmp_path, "models/merge8/base.safetensors")):
        monkeypatch.delenv("NETT_ASSETS", raising=False)
        if folder is not None:
            monkeypatch.setenv("NETT_ASSETS", str(folder))
        skipped: dict[str, str] = {}
        assert list(merging.all_cases((0,), skipped)) == []
        assert skipped.keys() == {"merge8"} and why in skipped["merge8"] and str(tmp_path) not in skipped["merge8"]


# -- tuning -----------------------------------------------------------------------------------------------------


def ways(bed: Any) -> dict[str, tuple[Any, int]]:
    """Every way of both claims, and how many settings its masks took before its own grid."""
    p10, masks, merging = module("P10"), module("masks"), module("merging")
    lambdas = [0.4] * len(bed.tasks)
    found = {w.name: (w, 0) for w in (*p10.WAYS, masks.TIES_SUM)}
    found[masks.CONSENSUS] = masks.consensus_over_sum(lambdas), len(masks.LAMBDAS)
    by_density = dict.fromkeys(merging.DENSITIES, lambdas)
    found[masks.CONSENSUS_TIES] = masks.consensus_over_ties(by_density), len(masks.LAMBDAS) * len(merging.DENSITIES)
    return found


def test_every_way_has_the_same_budget(bed: Any) -> None:
    for name, (way, spent) in ways(bed).items():
        for count in (4, 8):
            grid = way.grid(count)
            assert len(grid) + spent == module("merging").BUDGET, name
            assert len({repr(sorted(s.items())) for s in grid}) == len(grid)
    sums = [s["scale"] for s in module("merging").TASK_ARITHMETIC.grid(8)]
    assert 1 / 8 in sums  # tuned task arithmetic can choose the plain average


def test_scaling_afterwards_is_what_the_kernel_does(bed: Any) -> None:
    """What tuning relies on, to the bit, for every way at a few of its settings."""
    deltas, nothing = [m - bed.base for m in bed.models], np.zeros_like(bed.base)
    for name, (way, _) in ways(bed).items():
        for settings in way.grid(8)[7::19]:
            rest = {k: v for k, v in settings.items() if k != "scale"}
            quick = bed.base + np.float32(settings["scale"]) * way.make(nothing, deltas, scale=1.0, **rest)
            assert np.array_equal(quick, way.make(bed.base, bed.models, **settings)), (name, settings)


def test_tuning_takes_the_best_on_the_seeds_own_validation_rows(bed: Any, draws: Any) -> None:
    merging, beds = module("merging"), module("beds")
    way = merging.Way("few", nett.merge.task_arithmetic, lambda n: [{"scale": s} for s in (0.0, 0.3, 0.1, 3.0)])
    two = {0: draws[0], 1: {t: rows[::7] for t, rows in draws[0].items()}}
    found = merging.tune(bed, two, way)
    for seed, rows in two.items():
        scores = [
            beds.accuracy(bed.all_correct(nett.merge.task_arithmetic(bed.base, bed.models, scale=s), "val"), rows)
            for s in (0.0, 0.3, 0.1, 3.0)
        ]
        assert found[seed].settings["scale"] == (0.0, 0.3, 0.1, 3.0)[int(np.argmax(scores))]
        merged = nett.merge.task_arithmetic(bed.base, bed.models, scale=found[seed].settings["scale"])
        assert beds.accuracy(found[seed].correct) == beds.accuracy(bed.all_correct(merged, "test"))
    only = merging.Way("edge", nett.merge.task_arithmetic, lambda n: [{"scale": 0.3}])
    assert merging.tune(bed, draws, only)[0].note == "scale 0.3, the end of the grid"


# -- differences ------------------------------------------------------------------------------------------------


def outcomes_of(values: dict[tuple[str, str], list[tuple[list[int], list[int]]]]) -> Any:
    class Named:
        def __init__(self, cell: tuple[str, str]) -> None:
            self.name, self.size = cell

    found = module("outcomes").Outcomes()
    for cell, pairs in values.items():
        for seed, (a, b) in enumerate(pairs):
            for name, rows in (("a", a), ("b", b)):
                found.add(Named(cell), seed, name, {"task": np.array(rows, bool)})
    return found


def test_a_gap_by_hand() -> None:
    """Seeds differ by 25 and by 75 points, each on four examples."""
    cell = ("bed", "width 2")
    gap = outcomes_of({cell: [([1, 1, 1, 0], [1, 1, 0, 0]), ([1, 1, 1, 0], [0, 0, 0, 0])]}).gap(cell, "a", "b")
    assert gap.mean == 50
    spread, sampling = np.std([25, 75], ddof=1) / np.sqrt(2), 100 * np.sqrt(3 / 16 / 4)
    assert gap.error == pytest.approx(np.hypot(spread, sampling))
    assert not gap.above and not gap.below


def test_mean_gap_and_better() -> None:
    kind, mean_gap, better = (getattr(module("outcomes"), n) for n in ("Gap", "mean_gap", "better"))
    gaps = {("x", "1"): kind(4.0, 0.3), ("x", "2"): kind(2.0, 0.5), ("y", "1"): kind(3.0, 0.6)}
    mean = mean_gap(gaps)
    assert mean.mean == 3 and mean.error == pytest.approx(np.sqrt((0.3 + 0.5) ** 2 + 0.6**2) / 3)
    assert better(gaps)
    assert not better({**gaps, ("y", "2"): kind(-1.0, 0.4)})  # worse somewhere
    assert better({**gaps, ("y", "2"): kind(-0.7, 0.4)})  # not beyond two errors
    assert not better({("x", "1"): kind(0.5, 0.3)})


def test_slopes_are_per_doubling() -> None:
    rows = {25: [1, 0, 0, 0], 50: [1, 1, 0, 0], 75: [1, 1, 1, 0]}
    nothing = [0, 0, 0, 0]
    cells = {("d", f"width {w}"): [(rows[v], nothing)] for w, v in ((64, 25), (128, 50), (256, 75))}
    found = outcomes_of(cells | {("e", "4 tasks"): [(rows[25], nothing)]}).slopes("a", "b")
    assert found == {"d": [pytest.approx(25)]}


def test_the_worst_task_by_hand() -> None:
    """Of ten examples, one task goes from 10 right to 9, the other from 4 to 4."""
    outcomes = module("outcomes")
    found, rows = outcomes.Outcomes(), lambda n: np.arange(10) < n

    class Named:
        name, size = "bed", "2 tasks"

    found.add(Named, 0, "before", {"x": rows(10), "y": rows(4)})
    found.add(Named, 0, "after", {"x": rows(9), "y": rows(4)})
    cell = ("bed", "2 tasks")
    assert found.kept(cell, "before", "after") == pytest.approx((90 + 100) / 2)
    ((name, gap),) = outcomes.worst_tasks(found, "before", "after", 99)
    assert name == "bed 2 tasks x" and gap.mean == pytest.approx(-9)
    assert gap.error == pytest.approx(100 * np.sqrt(0.09 / 10)) and not gap.below


# -- the claims, at toy size ------------------------------------------------------------------------------------


def test_trimming_and_conflicts_by_hand(on_path: None) -> None:
    p10 = module("P10")
    delta = np.arange(-5, 5, dtype=np.float32)
    # d = 10, k = 10 - 2 = 8: kept are all |x| >= the 8th smallest of 0 1 1 2 2 3 3 4 4 5, which is 4.
    assert p10.trim(delta, 0.2).tolist() == [-5, -4, 0, 0, 0, 0, 0, 0, 0, 4]
    trimmed = [np.array(t, np.float32) for t in ([1, 1, 0, 1], [1, -1, 1, 1], [0, 1, -1, 1])]
    found = p10.conflicts(trimmed, 0)
    assert found[2] == (pytest.approx(100 * (1 / 3 + 0 / 2 + 2 / 3) / 3), 50.0)
    assert found[3] == (pytest.approx(50.0), pytest.approx(100 * (0.5 + 0.75 + 0.5 + 0.75) / 4))
    merged = p10.ties_without_election(
        np.zeros(3, np.float32), [np.float32([2, 4, 0]), np.float32([-6, 2, 0])], density=1.0, scale=2.0
    )
    assert merged.tolist() == [-4, 6, 0]


def test_masks_through_files_are_the_masks_in_memory(bed: Any) -> None:
    """In float32 to the bit (checked inside, too); in bfloat16 to its rounding."""
    import torch

    masks = module("masks")
    lambdas = [0.2, 0.3, 0.4, 0.5, 0.6, 0.2, 0.3, 0.4]
    files = masks.through_files(bed, lambdas, torch.float32)
    assert all(np.array_equal(a, b) for a, b in zip(files.restored, masks.masked(bed, lambdas), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(files.written, bed.models, strict=True))
    assert files.bytes_tuned == 8 * files.bytes_base
    assert files.bytes_base < files.bytes_merged < files.bytes_folder
    half = masks.through_files(bed, lambdas, torch.bfloat16)
    assert half.bytes_base < 0.7 * files.bytes_base
    assert (
        np.mean([np.isclose(a, b, atol=0.02).mean() for a, b in zip(half.restored, files.restored, strict=True)]) > 0.9
    )


def test_lambdas_are_the_best_of_five_for_each_task(bed: Any, draws: Any) -> None:
    masks = module("masks")
    chosen = masks.choose_lambdas(bed, draws)[0]
    for i, task in enumerate(bed.tasks):
        scores = [bed.correct(masks.masked(bed, v)[i], task, "val").mean() for v in masks.LAMBDAS]
        assert chosen[i] == masks.LAMBDAS[int(np.argmax(scores))]


def test_what_masks_do_by_hand(on_path: None) -> None:
    """Two tasks of four weights: tau_MT = (3, 0, 2, 5); at lambda 1 a mask keeps |tau| > |the other's tau|."""
    masks, beds = module("masks"), module("beds")
    taus = np.float32([1, 1, 2, 0]), np.float32([2, -1, 0, 5])
    bed = beds.Bed(
        "b",
        "2 tasks",
        ("x", "y"),
        {"w": (4,)},
        np.zeros(4, np.float32),
        dict(zip("xy", taus, strict=True)),
        {},
        lambda *a: None,
    )
    assert [r.tolist() for r in masks.masked(bed, 1.0)] == [[0, 0, 2, 0], [3, 0, 0, 5]]
    assert masks.uses(bed, 1.0) == [0.0, 100.0, 0.0]  # of the three weights that the vector moves
    own, values = masks.interference(bed, [1.0, 1.0])
    assert [o.tolist() for o in own] == [[0, 0, 2, 0], [2, 0, 0, 5]]
    off = np.sqrt(2 / 6), np.sqrt((1 + 1) / 30)
    assert values[masks.REST] == pytest.approx(100 * np.mean(off))


def test_uses_add_up(bed: Any) -> None:
    shares = module("masks").uses(bed, 0.4)
    assert len(shares) == 9 and sum(shares) == pytest.approx(100)


@pytest.mark.parametrize("paper", ["P10", "P04"])
def test_a_claim_at_toy_size(paper: str, bed: Any, draws: Any) -> None:
    """Every check with its figures, a frontier that standings can be had from, and no bed that was not given."""
    from nett.core.claims import Result
    from nett.core.standing import stands

    said: list[str] = []
    result: Result = module(paper).experiment([module("beds").Case(bed, draws)], {"merge8": "left out"}, said.append)
    assert len(said) == 1 and result.skipped == {"merge8": "left out"} and result.beds == ["digits"]
    assert len(result.checks) == {"P10": 6, "P04": 7}[paper]
    assert all(c.rule and c.figures and isinstance(c.holds, bool) for c in result.checks)
    assert all(np.isfinite(f.value) for f in result.figures)
    assert (result.verdict == "holds") == (not result.because)
    trivial = {p.method for p in result.frontier if p.trivial}
    assert trivial == {"every fine-tune kept", "merge/linear", "the base alone"}
    methods = {"P10": {"merge/ties"}, "P04": {"merge/tall_masks", "merge/consensus"}}[paper]
    assert methods <= stands(result.frontier).keys()
