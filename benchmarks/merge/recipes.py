"""mergekit's recipes, one for every feature and method: through nett and mergekit, on a pico family and on 134 M."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import spend
from benchmarks.merge.mergekit import executable, versions_of

from nett.core.bench import Figure, Outcome, Series
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.errors import UsageError, did_you_mean
from nett.merge.recipe_run import planned_steps
from nett.merge.recipe_steps import load_steps

TITLE = "mergekit's recipes, one for every feature and method, as they are"
PICO = {"layers": 4, "hidden": 32, "vocab": 96, "inter": 64}
USUAL = {"layers": 12, "hidden": 768, "vocab": 32_000, "inter": 2048, "heads": 12, "kv_heads": 12}
OURS = "nett merge recipe.yml --no-speak --overwrite --quiet --out merged"
THEIRS = "mergekit-yaml recipe.yml mergekit-out --no-copy-tokenizer --no-write-model-card --lora-merge-cache lora"
MULTI = "mergekit-multi recipe.yml --out-path mergekit-out -I steps" + THEIRS.partition("mergekit-out")[2]
BLOCK = 1 << 22  # elements compared at a time
NEAR = 4.0  # roundings of the larger of 1 and the value: sums in another order
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    """NETT_BENCH_RECIPES="NAME; NAME" takes some of the recipes only."""
    cases, write_models, recipe_text, units = _recipes()
    chosen = _chosen(cases)
    mergekit = executable(say, make=not pico)
    if mergekit is None:
        chosen = dict(list(chosen.items())[:2])
    figures: list[Figure] = []
    for bed, shape in {"pico": PICO, "134 M": USUAL}.items() if not pico else {"pico": PICO}.items():
        folder = work / f"recipes-{bed.replace(' ', '')}"
        if not (folder / "done").exists():
            say(f"making the models, {bed}")
            shutil.rmtree(folder, ignore_errors=True)
            write_models(folder, shape)
            (folder / "done").touch()
        texts = {n: recipe_text(_stretched(r, shape["layers"] // PICO["layers"])) for n, r in chosen.items()}
        figures += _bed(bed, folder, texts, units, mergekit, say)
    missing = {} if mergekit else {"all recipes beside mergekit": "mergekit is not installed (NETT_MERGEKIT)"}
    return Outcome(figures, versions_of(mergekit) if mergekit else {}, missing)


def _recipes() -> tuple[dict[str, Any], Any, Any, Mapping[str, float]]:
    """The parity recipes and their models, as the tests have them: they are written down once."""
    tests = str(Path(__file__).resolve().parents[2] / "tests")
    sys.path.insert(0, tests)
    try:
        from support.mergekit import CASES, UNIT, recipe_text, write_models  # type: ignore[import-not-found]
    finally:
        sys.path.remove(tests)
    return CASES, write_models, recipe_text, UNIT


def _stretched(recipe: Any, factor: int) -> Any:
    """A recipe written for models of four layers, for those of ``factor`` times as many (t5 is as small on every bed)."""
    if isinstance(recipe, list):
        return [_stretched(one, factor) for one in recipe]
    if not isinstance(recipe, dict):
        return recipe
    made = {key: _stretched(value, factor) for key, value in recipe.items()}
    if "layer_range" in made and not str(made["model"]).startswith("t5"):
        made["layer_range"] = [factor * number for number in made["layer_range"]]
    return made


def _chosen(cases: Mapping[str, Any]) -> dict[str, Any]:
    names = [n.strip() for n in os.environ.get("NETT_BENCH_RECIPES", "").split(";") if n.strip()]
    for name in names:
        if name not in cases:
            raise UsageError(f"NETT_BENCH_RECIPES names {name!r}.{did_you_mean(name, cases)}")
    return {n: r for n, r in cases.items() if not names or n in names}


def _bed(
    bed: str, folder: Path, texts: Mapping[str, str], units: Mapping[str, float], mergekit: Path | None, say: Say
) -> Iterator[Figure]:
    """The figures over all recipes, then one line for each."""
    (folder / "recipe.yml").write_text(next(iter(texts.values())), encoding="utf-8")
    spend(OURS.split(), folder)  # so that numba's cache is warm
    mine, theirs, peaks, lines = [], [], [], []
    for name, text in texts.items():
        (folder / "recipe.yml").write_text(text, encoding="utf-8")
        ours = spend(OURS.split(), folder, memory=True)
        mine.append(ours.cpu)
        peaks.append(ours.anonymous)
        said = f"{bed}, {name}: {ours.cpu:.2f} CPU s, {ours.anonymous:.0f} MB"
        if mergekit is not None:
            command = MULTI if "\n---\n" in text else THEIRS
            for left in ("mergekit-out", "steps", "lora"):
                shutil.rmtree(folder / left, ignore_errors=True)
            other = spend([str(mergekit.with_name(command.split()[0])), *command.split()[1:]], folder, memory=True)
            theirs.append(other.cpu)
            worst, share, left_out = differences(folder, units.get(name, 2.0**-23))
            said += f"; mergekit {other.cpu:.2f} CPU s, {other.anonymous:.0f} MB; "
            lines.append((name, worst, f"{share:.2g} of the elements differ by more, {left_out:.2g} left out as ties"))
            said += f"furthest {worst:.3g} roundings, {lines[-1][2]}"
        say(said)
        for left in ("mergekit-out", "steps", "lora", "merged"):
            shutil.rmtree(folder / left, ignore_errors=True)
    count = f"{len(texts)} recipes"
    total = Series("nett", "CPU s", [sum(mine)], command=OURS)
    if mergekit is not None:
        yield Figure(
            f"CPU time of {count}, {bed}", total, Series("mergekit", "CPU s", [sum(theirs)], command=THEIRS), bar=1 / 4,
            note="the sum over all, each run once, in turn",
        )  # fmt: skip
    most = max(zip(peaks, texts, strict=True))
    memory = Series("nett", "MB", [most[0]], command=OURS)
    yield Figure(f"anonymous memory, most of {count}, {bed}", memory, bar=500.0, note=f"that of: {most[1]}")
    for name, worst, note in sorted(lines, key=lambda line: -line[1])[: len(lines) if bed != "pico" else 5]:
        series = Series("nett", "roundings from mergekit", [worst], command=OURS)
        yield Figure(f"largest difference, {bed}, {name}", series, bar=NEAR if bed == "pico" else None, note=note)


def differences(folder: Path, unit: float) -> tuple[float, float, float]:
    """How far the two outputs lie apart: the largest distance in roundings of the larger of 1 and the value, the share
    of elements that lie further apart than :data:`NEAR`, and the share that was left out, because a model's change
    is as large as the smallest one that is kept: which of equal ones are kept is anyone's choice."""
    worst, far, tied, total = 0.0, 0, 0, 0
    with (
        contextlib.chdir(folder),
        open_checkpoint(folder / "merged") as ours,
        open_checkpoint(folder / "mergekit-out") as theirs,
    ):
        if set(ours.tensors) != set(theirs.tensors):
            odd = sorted(set(ours.tensors) ^ set(theirs.tensors))
            raise UsageError(f"{len(odd)} tensors are in one output only, such as {odd[0]}", where=folder)
        ties = _Ties(folder)
        for name, info in ours.tensors.items():
            kept = ~ties.of(name) if ties.trims else None
            for start in range(0, info.size, BLOCK):
                stop = min(info.size, start + BLOCK)
                mine = ours.values(name, start, stop).astype(np.float64)
                its = theirs.values(name, start, stop).astype(np.float64)
                apart = np.abs(mine - its) / (np.maximum(1.0, np.abs(its)) * unit)
                if kept is not None:
                    tied += int(np.count_nonzero(~kept[start:stop]))
                    apart = apart[kept[start:stop]]
                worst = max(worst, float(apart.max(initial=0.0)))
                far += int(np.count_nonzero(apart > NEAR))
            total += info.size
        ties.close()
    return worst, far / total, tied / total


class _Ties:
    """Where the recipe of a folder trims and a change is exactly as large as the smallest one that is kept."""

    def __init__(self, folder: Path) -> None:
        steps = load_steps(folder / "recipe.yml")
        self.trims = len(steps) == 1 and steps[0].recipe.words.card.name == "ties"
        self._planned = planned_steps(steps)
        self._plan = self._planned.__enter__()[0]
        self._tasks = {t.name: t for t in self._plan.job.tasks}

    def of(self, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        task, row = self._tasks[name], self._plan.rows[name]
        assert task.base is not None
        found = np.zeros(task.size, np.bool_)
        ground = _values(task.base.checkpoint, task.base.name)
        for operand, values in zip(task.tuned, row.each, strict=True):
            size = np.abs(_values(operand.checkpoint, operand.name) - ground)
            kept = max(1, int(values["density"].value * task.size))
            if kept < task.size:
                threshold = np.partition(size, task.size - kept)[task.size - kept]
                same = size == threshold
                found |= same & (np.count_nonzero(same) > 1)
        return found

    def close(self) -> None:
        self._planned.__exit__(None, None, None)


def _values(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    return np.asarray(checkpoint.values(name), np.float32)
