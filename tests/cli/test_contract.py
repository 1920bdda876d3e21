"""What the command line promises of every card, whatever its room, and of ``nett doctor``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import nett as package
from nett.core.cards import all_cards
from support.cli import nett

CARDS = [c for c in all_cards() if not c.hidden]
LIST = ["room", "name", "papers", "kind", "guarantee", "grain", "standing", "summary", "parameters"]


def test_list_has_exactly_these_keys_in_this_order() -> None:
    rows = json.loads(nett("list", "--json").succeeded().out)
    assert len(rows) == len(CARDS)
    for row, card in zip(rows, CARDS, strict=True):
        assert list(row) == LIST
        assert row["room"] == card.room.split(".")[0]
        assert [list(p) for p in row["parameters"]] == [["name", "type", "default", "description"]] * len(
            card.parameters
        )


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.key)
def test_show_tells_the_whole_card(card) -> None:  # type: ignore[no-untyped-def]
    """And the command that it names shows help with the card's options, spelt with ``-`` or ``_``."""
    said = nett("show", card.key).succeeded().out
    assert said.startswith(f"{card.key}: {card.title}") and card.summary in said
    assert f"kind {card.kind}, grain {card.grain}, guarantee {card.guarantee}" in said
    told = {"Formula", "When to use", "When not", "Guarantee", "Cost", "Source"} & card.sections.keys()
    for title in {"When to use", "When not", "Cost"} | told:
        assert f"{title}: {card.sections[title]}" in said, title
    python = card.kind == "train"
    for parameter in card.parameters:
        name = parameter.name if python else f"--{parameter.name.replace('_', '-')}"
        assert f"  {name} {parameter.type}" in said and parameter.description in said
    if python:  # used from Python: the call, and help that holds it too
        assert card.sections["Example"] in said and f"nett.{card.room}.{card.name}(" in card.sections["Example"]
        shown = nett(card.room, card.name, "--help").succeeded().out
        assert all(line.strip() in shown for line in card.sections["Example"].splitlines())
        return
    use = said.splitlines()[-1]
    assert use == f"Use: nett {card.room} {card.name} --help"
    for name in (card.name, card.name.replace("_", "-")):
        shown = nett(card.room, name, "--help").succeeded().out
        flags = [f"--{p.name.replace('_', '-')}" for p in card.parameters if p.name != "dry_run"]  # an option of all
        assert all(f in shown or f.replace("--", "--no-", 1) in shown for f in flags)


def test_show_says_what_is_near_to_a_wrong_name() -> None:
    nett("show", "tall_mask").failed(2, "'tall_mask'", "Did you mean 'tall_masks'", "nett list")
    nett("show", "merge/closeness").failed(2, "merge/closeness")
    nett("show").failed(2, "Missing argument")


def test_doctor_tells_what_each_extra_adds() -> None:
    from importlib.metadata import metadata

    said = nett("doctor").succeeded().out
    extras = metadata("nett").get_all("Provides-Extra") or []
    assert {"models", "lake", "spark", "dev", "all"} <= set(extras)
    for extra in ("base", *extras):
        (line,) = [text for text in said.splitlines() if text.startswith(f"{extra} (")]
        assert line.endswith(": complete") or f"pip install 'nett[{extra}]'" in line
    for word in ("chromium", "java", "git", "NETT_ASSETS", "cores", "memory"):
        assert word in said


def test_doctor_exits_0_where_nothing_is_installed(tmp_path: Path) -> None:
    """Run from a folder, without the metadata of any package: it says what lacks and does not fail."""
    code = (
        "import sys, importlib.metadata as m\n"
        "def gone(name): raise m.PackageNotFoundError(name)\n"
        "m.version = m.requires = gone\n"
        "from nett.cli.app import run\n"
        "sys.exit(run(['doctor']) or run(['doctor', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"nett {package.__version__}")


def test_every_command_takes_the_options_of_all() -> None:
    """In front and behind, whatever the command."""
    for flag in ("--quiet", "--debug", "--json-events", "--dry-run"):
        for line in (["list", "merge"], ["show", "ties"], ["papers", "--json"], ["doctor"]):
            assert nett(flag, *line).succeeded().out == nett(*line, flag).succeeded().out


def test_top_help_names_every_verb_and_room_that_stands() -> None:
    said = nett("--help").succeeded().out
    for room in {c.room.split(".")[0] for c in CARDS}:
        assert f"  {room}" in said
    for verb in ("scan", "verify", "restore", "convert", "diff", "list", "show", "papers", "claims", "bench", "doctor"):
        assert f"  {verb}" in said
