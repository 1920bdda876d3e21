"""Global options before or after, ``_`` or ``-``, exit codes, what goes to which stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nett as package
from nett.cli.app import VERBS, split_global
from nett.core.cards import all_cards, engine_options
from support.cli import nett, nett_process
from support.merging import Family, family
from support.tensors import read_tensors


@pytest.fixture
def models(tmp_path: Path) -> Family:
    return family(tmp_path / "models", count=2)


def words(models: Family, out: Path) -> list[str]:
    return ["merge", "task_arithmetic", *models.paths, "--base", models.base_path, "--out", str(out), "--no-speak"]


def test_version_anywhere() -> None:
    said = f"nett {package.__version__}\n"
    for line in (["--version"], ["list", "--version"], ["merge", "ties", "m", "--version"], ["--version", "nonsense"]):
        assert nett(*line).succeeded().out == said
    assert nett_process("--version").succeeded().out == said


@pytest.mark.parametrize("place", [0, 1, 2, 4, 99])
@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_dry_run_anywhere(models: Family, tmp_path: Path, place: int, flag: str) -> None:
    line = words(models, tmp_path / "out")
    line.insert(place, flag)
    assert "plan" in json.loads(nett(*line).succeeded().out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [0, 2, 99])
def test_quiet_anywhere(models: Family, tmp_path: Path, place: int) -> None:
    line = words(models, tmp_path / "out")
    line.insert(place, "--quiet")
    assert nett(*line).succeeded().err == ""


@pytest.mark.parametrize("place", [0, 2, 99])
@pytest.mark.parametrize("flag", ["--json-events", "--json_events"])
def test_json_events_anywhere(models: Family, tmp_path: Path, place: int, flag: str) -> None:
    """Every line on standard error is a JSON object; stages begin and end; errors are events too."""
    line = words(models, tmp_path / "out")
    line.insert(place, flag)
    events = [json.loads(row) for row in nett(*line).succeeded().err.splitlines()]
    begun = [e["stage"] for e in events if e["event"] == "begin"]
    assert begun and [e["stage"] for e in events if e["event"] == "end"] == begun
    assert all(e["total"] > 0 and e["unit"] == "bytes" for e in events if e["event"] == "begin")
    again = nett(*line)
    last = json.loads(again.err.splitlines()[-1])
    assert again.code == 3 and last["event"] == "error" and last["exit"] == 3 and "--overwrite" in last["text"]


def test_style_of_one_call_does_not_stay(models: Family, tmp_path: Path) -> None:
    nett(*words(models, tmp_path / "one"), "--json-events").succeeded()
    said = nett("merge", "ties", "nowhere", "--base", "b", "--out", "o")
    assert said.err.startswith("nett: ")


@pytest.mark.parametrize("place", [0, 2, 99])
def test_debug_anywhere(place: int) -> None:
    line = ["merge", "ties", "nowhere", "--base", "b", "--out", "o"]
    line.insert(place, "--debug")
    said = nett_process(*line)
    assert "Traceback" in said.err and "Refused" in said.err and said.code != 0


def test_after_two_dashes_nothing_is_an_option() -> None:
    assert split_global(["a", "--quiet", "--", "--quiet", "--version"]) == (
        ["a", "--", "--quiet", "--version"],
        {"--quiet"},
    )
    assert split_global(["--dry_run", "x"]) == (["x"], {"--dry-run"})
    assert split_global(["x", "--version", "--quiet"]) == (["--version"], set())


def test_underscore_and_dash_alike(models: Family, tmp_path: Path) -> None:
    """Commands, options and choices."""
    base = ["--base", models.base_path, "--no-speak"]
    one = ["merge", "dare_linear", *models.paths, *base, "--out", str(tmp_path / "a"), "--rescale", "inverse_density"]
    two = ["merge", "dare-linear", *models.paths, *base, "--out", str(tmp_path / "b"), "--rescale", "inverse-density"]
    nett(*one, "--shard_size", "1GB").succeeded()
    nett(*two, "--shard-size", "1GB").succeeded()
    a, b = read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b")
    assert all((a[n] == b[n]).all() for n in a)
    assert nett("show", "tall_masks").out == nett("show", "tall-masks").out == nett("show", "merge/tall-masks").out
    helps = [nett("merge", name, "--help").succeeded().out for name in ("tall_masks", "tall-masks")]
    assert helps[0].split("\n", 1)[1] == helps[1].split("\n", 1)[1]  # the first line repeats what was typed


def test_yes_and_no_of_switches(models: Family, tmp_path: Path) -> None:
    """A switch that is on by default has a --no; each says the same as the parameter."""
    line = ["merge", "ties", *models.paths, "--base", models.base_path, "--no-speak", "--density", "0.7"]
    receipts = []
    for name, more in (("a", []), ("b", ["--normalize"]), ("c", ["--no-normalize"]), ("d", ["--weight-in-election"])):
        nett(*line, "--out", str(tmp_path / name), *more).succeeded()
        receipts.append(json.loads((tmp_path / name / "nett.json").read_text())["parameters"])
    assert [r["normalize"] for r in receipts] == [True, True, False, True]
    assert [r["weight_in_election"] for r in receipts] == [False, False, False, True]


@pytest.mark.parametrize("card", [c for c in all_cards() if c.room == "merge" and not c.hidden], ids=lambda c: c.key)
def test_help_shows_every_option_of_a_card(card, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With its range or choices, its default and its description; not those that it refuses, with the reason."""
    said = nett(card.room, card.name, "--help").succeeded().out
    flowed = " ".join(said.split()).replace("- ", "-")  # lines may be broken behind a hyphen
    options = () if card.command else engine_options(card.room, "run")
    for parameter in (*card.parameters, *(o for o in options if o.name != "dry_run" and card.takes(o))):
        flag = "--" + parameter.name.replace("_", "-")
        if parameter in options and card.refuses(parameter.name):
            assert flag not in said
            asked = nett(card.room, card.name, str(tmp_path), flag, "4", "--out", str(tmp_path / "out"))
            assert asked.code in (2, 3) and "option" not in asked.err
            continue
        assert flag in said or flag.replace("--", "--no-", 1) in said
        assert parameter.description.rstrip(".").split()[0] in flowed
        if parameter.range and not parameter.choices:
            assert parameter.range in flowed
        for choice in parameter.choices:
            assert choice in flowed
    assert card.summary.split(",")[0] in " ".join(said.split())
    assert nett("show", card.key).succeeded().out.startswith(f"{card.key}: {card.title}")


def test_top_help_shows_verbs_and_rooms() -> None:
    said = nett("--help").succeeded().out
    for word in (*VERBS, "merge", "--dry-run", "--quiet", "--json-events", "--debug", "--version"):
        assert word in said
    assert nett().succeeded().out == said
    room = nett("merge").succeeded().out
    assert "Many checkpoints become one" in room and all(
        c.name.replace("_", "-") in room for c in all_cards() if c.room == "merge"
    )


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb: str) -> None:
    assert nett(verb, "--help").succeeded().out.startswith("Usage: nett")


def test_results_on_standard_output_progress_on_standard_error(models: Family, tmp_path: Path) -> None:
    said = nett_process(*words(models, tmp_path / "out")).succeeded()
    assert "proof kept" in said.out and "nett verify" in said.out
    assert "proof" not in said.err


def test_a_broken_pipe_is_no_error_message(models: Family) -> None:
    import subprocess
    import sys

    command = f"{sys.executable} -m nett list --json | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("[") and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_internal_errors_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from nett.core import cards

    def broken(*_: object) -> None:
        raise RuntimeError("this is a bug")

    monkeypatch.setattr(cards, "all_cards", broken)
    nett("list").failed(1, "internal error: RuntimeError: this is a bug", "--debug")


def test_doctor_always_exits_0() -> None:
    said = nett("doctor").succeeded().out
    assert (package.__version__ in said and "pip install" in said) or "complete" in said
    found = json.loads(nett("doctor", "--json").succeeded().out)
    assert found["nett"] == package.__version__ and "numpy" in found["extras"]["base"]


def test_click_is_all_that_starting_needs() -> None:
    """Neither numpy, numba, torch, rich, pydantic nor jinja2 for help and lists."""
    import subprocess
    import sys

    heavy = ("numpy", "numba", "torch", "rich", "pydantic", "jinja2", "transformers", "safetensors", "duckdb")
    for line in (["--help"], ["list"], ["list", "--json"], ["show", "ties"], ["merge", "ties", "--help"], ["merge"]):
        code = (
            "import sys, nett.cli.app as a\n"
            f"code = a.run({line!r})\n"
            f"bad = [m for m in {heavy!r} if m in sys.modules]\n"
            "sys.exit(f'imported {bad}' if bad or code else 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stderr)
    """It is named, whatever the method's own parameters are called."""
    nett("weights", "rtn", "model", "--calibration", "text", "--out", "o").failed(
        2, "--calibration means nothing to this method"
    )
    nett("cache", "kivi", "model", "--budget", "0.5").failed(2, "--budget means nothing", "nett cache kivi --help")
    nett("weights", "rtn", "model", "--bit", "3", "--out", "o").failed(2, "Did you mean 'bits'")
