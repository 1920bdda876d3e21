"""Parameters set to ``auto``: every value of the grid is tried, a command of the user's judges, the best stays."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from nett.core.cards import find_card
from support.cli import nett
from support.merging import Family, family
from support.tensors import read_tensors

GRID = [0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.fixture
def models(tmp_path: Path) -> Family:
    return family(tmp_path / "models")


def judge(tmp_path: Path, body: str) -> str:
    """A command that runs Python with the model's folder in ``model`` and a log to write to."""
    script = tmp_path / "judge.py"
    tests = Path(__file__).resolve().parents[1]
    script.write_text(
        f"import sys; sys.path.insert(0, {str(tests)!r})\n"
        "import json\nfrom pathlib import Path\nmodel, task = Path(sys.argv[1]), sys.argv[2]\n"
        f"log = open({str(tmp_path / 'log')!r}, 'a')\n{body}\n"
    )
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{model}} '{{task}}'"


def run(models: Family, tmp_path: Path, method: str, command: str, *words: str) -> dict[str, Any]:
    base = ["--base", models.base_path, "--out", str(tmp_path / "place" / "out"), "--no-speak"]
    nett("merge", method, *models.paths, *base, "--eval", command, *words).succeeded()
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["out"]
    receipt: dict[str, Any] = json.loads((tmp_path / "place" / "out" / "nett.json").read_text())
    return receipt


def test_scale_of_consensus(models: Family, tmp_path: Path) -> None:
    """The judge likes 0.3 best: it reads the scale from each trial's receipt."""
    body = (
        "scale = json.loads((model / 'nett.json').read_text())['parameters']['scale']\n"
        "print(scale, file=log)\nprint('words before the score')\nprint(-abs(scale - 0.3))"
    )
    receipt = run(models, tmp_path, "consensus", judge(tmp_path, body), "--scale", "auto")
    assert receipt["parameters"]["scale"] == 0.3
    tried = [float(x) for x in (tmp_path / "log").read_text().split()]
    assert tried == list(find_card("consensus").parameter("scale").grid)  # type: ignore[union-attr]


def test_one_lambda_for_each_task(models: Family, tmp_path: Path) -> None:
    """Each task's own rebuilt checkpoint is judged, and each task gets its own best value: here, the one that comes
    nearest to its fine-tune, or farthest."""
    body = (
        "from support.tensors import read_tensors\n"
        f"original = read_tensors(Path({str(tmp_path / 'models')!r}) / task)\n"
        "rebuilt = read_tensors(model)\n"
        "apart = sum(float(abs(rebuilt[n] - original[n]).sum()) for n in original)\n"
        "print(task, file=log)\nprint(apart if task == 'm2' else -apart)"
    )
    receipt = run(models, tmp_path, "tall_masks", judge(tmp_path, body), "--mask-lambda", "auto")
    chosen = receipt["parameters"]["mask_lambda"]
    assert (tmp_path / "log").read_text().split() == ["m1", "m2", "m3"] * len(GRID)
    distances: dict[float, list[float]] = {}
    for value in GRID:
        out = tmp_path / f"by-hand-{value}"
        words = ["--base", models.base_path, "--out", str(out), "--no-speak", "--mask-lambda", str(value)]
        nett("merge", "tall_masks", *models.paths, *words).succeeded()
        row = []
        for task in ("m1", "m2", "m3"):
            back = out / f"back-{task}"
            nett("restore", str(out), "--task", task, "--out", str(back)).succeeded()
            rebuilt, original = read_tensors(back), read_tensors(tmp_path / "models" / task)
            row.append(sum(float(abs(rebuilt[n] - original[n]).sum()) for n in original))
        distances[value] = row
    best = [min(GRID, key=lambda v, i=i: distances[v][i]) for i in range(3)]  # type: ignore[misc]
    best[1] = max(GRID, key=lambda v: distances[v][1])
    assert chosen == best and chosen[0] != chosen[1]


def test_ties_in_the_score_take_the_first(models: Family, tmp_path: Path) -> None:
    receipt = run(models, tmp_path, "consensus", judge(tmp_path, "print(1)"), "--scale", "auto")
    assert receipt["parameters"]["scale"] == 0.1


@pytest.mark.parametrize(
    ("command", "code", "parts"),
    [
        (None, 2, ["auto needs a command", "--eval"]),
        ("true", 2, ["{model}"]),
        ("echo hello {model}", 3, ["is not a number", "larger is better"]),
        ("true {model}", 3, ["is not a number"]),
        ("echo nan {model}", 3, ["is not a number"]),
        ("echo 'no data' >&2; false {model}", 3, ["exit code 1", "no data"]),
        ("no-such-command-anywhere {model}", 3, ["exit code 127"]),
    ],
)
def test_a_judge_that_does_not_judge(
    models: Family, tmp_path: Path, command: str | None, code: int, parts: list[str]
) -> None:
    (tmp_path / "place").mkdir()
    words = ["--base", models.base_path, "--out", str(tmp_path / "place" / "out"), "--scale", "auto"]
    words += [] if command is None else ["--eval", command]
    nett("merge", "consensus", *models.paths, *words).failed(code, *parts)
    assert not list((tmp_path / "place").iterdir())


def test_a_model_path_with_blanks_is_quoted(tmp_path: Path) -> None:
    models = family(tmp_path / "with blank")
    receipt = run(
        models, tmp_path / "with blank", "consensus", judge(tmp_path, "print(model.is_dir() - 1)"), "--scale", "auto"
    )
    assert receipt["parameters"]["scale"] == 0.1


def test_only_what_has_a_grid(models: Family, tmp_path: Path) -> None:
    words = ["--base", models.base_path, "--out", str(tmp_path / "o"), "--density", "auto"]
    nett("merge", "ties", *models.paths, *words).failed(2, "density = 'auto' is not a number")
