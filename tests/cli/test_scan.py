"""``nett scan PATH…`` and ``nett scan PROBE PATH…``: what is printed, ``--json``, ``--html``, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nett.core.cards import all_cards
from nett.scan import engine
from nett.scan.page import alike
from support.cli import nett, nett_process
from support.scanning import model, tuned, write


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    base = model()
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    return [write(tmp_path / "base", base), *(write(tmp_path / f"m{i}", tuned(base, i, share=0.1)) for i in (1, 2))]


def test_table_json_and_page_say_the_same(paths: list[str], tmp_path: Path) -> None:
    said = nett("scan", *paths, "--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")).succeeded()
    record = json.loads((tmp_path / "s.json").read_text())
    found = engine.run(paths)
    assert record["edges"] == [e.as_json() for e in found.edges] and record["edges"]
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{found.nbytes:,} bytes in 3 checkpoints; {found.lossless:,} can be freed without loss")
    groups = alike(found.edges)
    rows = [line.split() for line in lines[2 : 2 + len(groups)]]
    assert [row[0] for row in rows] == [f"{e.bytes_freed * n:,}" for e, _, n in groups]
    assert [row[3] for row in rows] == [e.kind for e, *_ in groups]
    assert sum(int(row[0].replace(",", "")) for row in rows) == sum(e.bytes_freed for e in found.edges)
    page = (tmp_path / "s.html").read_text()
    for edge, _, n in groups:
        assert f"{edge.bytes_freed * n:,}" in page and edge.kind.replace("_", " ") in page
    for command in {e.command for e in found.edges if e.command}:
        assert command in page and command in said.out


def test_findings_that_differ_only_in_their_layer_are_one_row(tmp_path: Path) -> None:
    values = model()["lm_head.weight"]
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    path = write(tmp_path / "m", dict.fromkeys(names, values) | {"other.weight": values})
    said = nett("scan", path, "--only", "duplicate_tensors").succeeded().out.splitlines()
    freed = engine.run([path], only=["duplicate_tensors"]).edges[0].bytes_freed
    rows = {row.split()[4]: row for row in said[2:4]}
    whole = rows["m::model.layers.*.mlp.up_proj.weight"]
    assert whole.split()[0] == f"{3 * freed:,}" and whole.endswith("(3 layers)")
    assert rows["m::other.weight"].split()[0] == f"{freed:,}"


def test_more_findings_than_a_screen_holds(tmp_path: Path) -> None:
    values = model()["lm_head.weight"]
    path = write(tmp_path / "m", {f"w{i}": values for i in range(60)})
    said = nett("scan", path, "--only", "duplicate_tensors", "--json", str(tmp_path / "s.json")).succeeded()
    assert "… and 19 more; --json FILE has all" in said.out
    assert len(json.loads((tmp_path / "s.json").read_text())["edges"]) == 59


def test_nothing_found(tmp_path: Path) -> None:
    said = nett("scan", write(tmp_path / "m", model())).succeeded()
    assert "Nothing redundant was found." in said.out


@pytest.mark.parametrize("words", [["--only", "header"], ["--only", "header,duplicate-tensors"], ["--only", "header", "--only", "closeness"]])  # fmt: skip
def test_only(paths: list[str], tmp_path: Path, words: list[str]) -> None:
    nett("scan", *paths, *words, "--json", str(tmp_path / "s.json")).succeeded()
    named = {name.replace("-", "_") for word in words[1::2] for name in word.split(",")}
    assert {p["name"] for p in json.loads((tmp_path / "s.json").read_text())["probes"]} == named


@pytest.mark.parametrize("card", [c for c in all_cards() if c.room == "scan"], ids=lambda c: c.name)
def test_every_probe_is_a_command_with_its_own_options(paths: list[str], tmp_path: Path, card) -> None:  # type: ignore[no-untyped-def]
    """``nett scan PROBE``, spelt either way, with the options of its card and those of scan."""
    said = nett("scan", card.name.replace("_", "-"), "--help").succeeded().out
    for flag in (
        "--json",
        "--html",
        "--base",
        "--threads",
        *("--" + p.name.replace("_", "-") for p in card.parameters),
    ):
        assert flag in said
    words = [w for p in card.parameters for w in ("--" + p.name.replace("_", "-"), str(p.default))]
    nett("scan", card.name, *paths, *words, "--json", str(tmp_path / "s.json")).succeeded()
    record = json.loads((tmp_path / "s.json").read_text())
    assert [p["name"] for p in record["probes"]] == [card.name]
    assert record["edges"] == [e.as_json() for e in engine.run(paths, only=[card.name]).edges]


def test_options_of_a_probe_are_checked(paths: list[str]) -> None:
    nett("scan", "effective-rank", *paths, "--energy", "2").failed(2, "energy", "out of range", "0 < energy <= 1")
    nett("scan", "effective-rank", *paths, "--enrgy", "0.5").failed(2, "'enrgy'", "Did you mean 'energy'")
    nett("scan", "effectiv-rank", *paths).failed(2, "no file, no folder and no probe", "Did you mean 'effective_rank'")
    nett("scan", *paths, "--only", "closenes").failed(2, "'closenes'", "Did you mean 'closeness'")


def test_a_folder_that_is_called_as_a_probe_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "header", model())
    said = nett_process("scan", "header", cwd=tmp_path).succeeded()
    assert "in 1 checkpoint;" in said.out


def test_errors(tmp_path: Path) -> None:
    nett("scan", "header").failed(2, "Missing argument")
    nett("scan", str(tmp_path / "nowhere")).failed(3, "nowhere", "no such file or folder")
    (tmp_path / "notes.txt").write_text("hello")
    nett("scan", str(tmp_path / "notes.txt")).failed(3, "notes.txt")
    path = write(tmp_path / "m", model())
    nett("scan", path, "--threads", "-1").failed(2, "--threads")
    for flag in ("--json", "--html"):
        said = nett("scan", path, flag, str(tmp_path / "no" / "such" / "file"))
        assert said.code == 1 and "nett: " in said.err and "Traceback" not in said.err
