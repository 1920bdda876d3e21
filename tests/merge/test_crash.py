"""Killed at any point and run again, a merge ends with the bytes of an undisturbed run; nobody sees half an output."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nett.core.tiny import fine_tune_of, write_llama
from support.cli import nett
from support.deaths import deaths, every_step
from support.forge import forge

PIECES: dict[str, Any] = {"chunk": 128, "small": 512, "mark": 1024, "threads": 2}
CASES: dict[str, dict[str, Any]] = {
    "ties": {"method": "ties"},
    "tall_masks": {"method": "tall_masks", "parameters": {"over": "ties"}},
    "sharded": {"method": "task_arithmetic", "shard_size": "1500"},
    "dare": {"method": "dare_ties", "parameters": {"rescale": "l1"}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pico Llama and two fine-tunes, one with a tokenizer file of its own."""
    folder = tmp_path_factory.mktemp("models")
    base = write_llama(folder / "base", layers=1, hidden=16, vocab=70, inter=24, heads=2, kv_heads=1)
    paths = [str(fine_tune_of(base, folder / f"m{i}", seed=i)) for i in (1, 2)]
    (folder / "m2" / "chat_template.jinja").write_text("{{ messages }}")
    return {"base": str(base), "models": paths}


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of an output but the receipt and the report, which hold times."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    assert found.pop("nett.json", None) and found.pop("nett.html", None) is not None
    return found


def figures(folder: Path) -> dict[str, Any]:
    """What a receipt says beside times."""
    receipt = json.loads((folder / "nett.json").read_text())
    for edge in receipt["edges"]:
        edge["seconds"] = 0
        edge["target"] = edge["target"].replace(str(folder), "")
        edge["sources"] = [s.replace(str(folder), "") for s in edge["sources"]]
        edge["command"] = (edge["command"] or "").replace(str(folder), "")
    return {k: v for k, v in receipt.items() if k not in ("created", "seconds", "peak_memory_bytes")}


def undisturbed(case: str, models: dict[str, Any], out: Path) -> tuple[list[str], dict[str, bytes], dict[str, Any]]:
    """The write steps that the case takes, by their kinds, the bytes and the figures that come out."""
    kinds = forge().run("support.work:kinds", call="merge", out=str(out), **models, **PIECES, **CASES[case])
    return kinds, weights(out), figures(out)


@every_step
@pytest.mark.parametrize("case", CASES)
def test_death_at_every_write_step(tmp_path: Path, models: dict[str, Any], case: str, dense: bool) -> None:
    kinds, expected, told = undisturbed(case, models, tmp_path / "calm")
    assert len(kinds) > 60
    for step in deaths(kinds, every=13, offset=3 * list(CASES).index(case), dense=dense):
        out = tmp_path / f"out{step}"
        arguments = {**models, **PIECES, **CASES[case], "out": str(out), "call": "merge"}
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, **arguments)
        assert forge().wait().code == 77
        assert not out.exists() or weights(out) == expected
        forge().run("support.work:counted", **arguments | ({"overwrite": True} if out.exists() else {}))
        assert weights(out) == expected, step
        assert figures(out) == told, step
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        shutil.rmtree(out)


def test_a_resumed_run_does_not_start_again(tmp_path: Path, models: dict[str, Any]) -> None:
    """What was journalled before the death is not written a second time, and not surveyed again."""
    kinds, expected, _ = undisturbed("ties", models, tmp_path / "calm")
    arguments = {**models, **PIECES, **CASES["ties"], "out": str(tmp_path / "out"), "call": "merge"}
    forge().start("support.work:counted", die_at=int(len(kinds) * 0.8), **arguments)
    assert forge().wait().code == 77
    journal = tmp_path / ".out.nett-partial" / "nett-journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert any("known" in line for line in lines) and any("task" in line for line in lines)
    assert forge().run("support.work:counted", **arguments) < len(kinds) / 2
    assert weights(tmp_path / "out") == expected


def test_death_while_replacing_keeps_the_old_or_the_new(tmp_path: Path, models: dict[str, Any]) -> None:
    """With --overwrite, whatever the moment, either output is whole, under its name or in a hidden folder beside."""
    out, old_out = tmp_path / "out", tmp_path / "old"
    arguments = {**models, **PIECES, "call": "merge", "overwrite": True}
    forge().run("support.work:counted", method="linear", out=str(old_out), **arguments)
    old = weights(old_out)
    calm = tmp_path / "calm"
    shutil.copytree(old_out, calm)
    steps = forge().run("support.work:counted", method="ties", out=str(calm), **arguments)
    new = weights(calm)
    for step in range(steps - 14, steps):
        shutil.copytree(old_out, out)
        forge().start("support.work:counted", method="ties", out=str(out), die_at=step, **arguments)
        assert forge().wait().code == 77
        places = (out, tmp_path / ".out.nett-replaced")
        assert any((p / "nett.json").exists() and weights(p) in (old, new) for p in places), step
        assert not out.exists() or weights(out) in (old, new)
        forge().run("support.work:counted", method="ties", out=str(out), **arguments)
        assert weights(out) == new
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        shutil.rmtree(out)


@every_step
def test_death_at_every_write_step_of_a_restore(tmp_path: Path, models: dict[str, Any], dense: bool) -> None:
    forge().run("support.work:merge", method="tall_masks", out=str(tmp_path / "masks"), **models)
    arguments = {"call": "restore", "folder": str(tmp_path / "masks"), "task": "m2"}
    kinds = forge().run("support.work:kinds", out=str(tmp_path / "calm"), **arguments)
    found = {f.name: f.read_bytes() for f in (tmp_path / "calm").iterdir() if f.name not in ("nett.json", "nett.html")}
    assert "chat_template.jinja" in found and len(kinds) > 15
    for step in deaths(kinds, every=5, dense=dense):
        out = tmp_path / f"out{step}"
        forge().start("support.work:counted", out=str(out), die_at=step, torn=step % 2 == 1, **arguments)
        assert forge().wait().code == 77
        if not out.exists():
            forge().run("support.work:counted", out=str(out), **arguments)
        assert {f.name: f.read_bytes() for f in out.iterdir() if f.name not in ("nett.json", "nett.html")} == found
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def killed_at_random(tmp_path: Path, models: dict[str, Any], case: str, kills: int, seed: int) -> None:
    """Start, kill from outside after a random time, start again; each time that a run gets through, compare."""
    chance = random.Random(seed)
    out = tmp_path / "out"
    arguments = {**models, **PIECES, **CASES[case], "out": str(out)}
    began = time.monotonic()
    forge().run("support.work:merge", **arguments)
    lasts = time.monotonic() - began
    expected, told = weights(out), figures(out)
    shutil.rmtree(out)
    killed = finished = resumed = 0
    while killed < kills or resumed <= kills / 4:
        assert killed < 4 * kills
        resumed += (tmp_path / ".out.nett-partial").exists()
        pid = forge().start("support.work:merge", **arguments)
        time.sleep(chance.random() * lasts)
        os.kill(pid, signal.SIGKILL)
        ended = forge().wait()
        assert ended.code in (0, -signal.SIGKILL), ended.error
        killed += ended.code != 0
        if out.exists():
            assert weights(out) == expected and figures(out) == told
            shutil.rmtree(out)
            finished += 1
    forge().run("support.work:merge", **arguments)
    assert weights(out) == expected and figures(out) == told
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_kills_from_outside(tmp_path: Path, models: dict[str, Any], case: str, kills: int) -> None:
    """Forty in all (or two hundred), over four methods."""
    killed_at_random(tmp_path, models, case, kills, seed=len(case) + kills)


def test_two_writers_of_one_output(tmp_path: Path, models: dict[str, Any]) -> None:
    """The second is refused and touches nothing; the first ends as if it had been alone."""
    _, expected, _ = undisturbed("ties", models, tmp_path / "calm")
    arguments = {**models, **PIECES, **CASES["ties"], "out": str(tmp_path / "out")}
    forge().start("support.work:gated_merge", gate=str(tmp_path / "gate"), **arguments)
    journal = tmp_path / ".out.nett-partial" / "nett-journal.jsonl"
    while not journal.exists() or not journal.read_bytes():
        time.sleep(0.002)
    words = [*models["models"], "--base", models["base"], "--out", str(tmp_path / "out"), "--no-speak"]
    nett("merge", "ties", *words).failed(3, "another nett is writing this output")
    nett("merge", "linear", *words).failed(3, "another nett is writing this output")
    assert not (tmp_path / "out").exists()
    (tmp_path / "gate").touch()
    ended = forge().wait()
    assert ended.code == 0, ended.error
    assert weights(tmp_path / "out") == expected


@pytest.mark.parametrize("change", ["input", "parameter", "method", "shard size"])
def test_other_work_does_not_go_on_from_what_is_left(tmp_path: Path, models: dict[str, Any], change: str) -> None:
    """A journal of another work is thrown away with all that stands beside it."""
    first = {**models, **PIECES, **CASES["ties"]}
    second = dict(first)
    if change == "input":
        shutil.copytree(models["models"][1], tmp_path / "m2")
        first["models"] = [models["models"][0], str(tmp_path / "m2")]
    steps = forge().run("support.work:counted", call="merge", out=str(tmp_path / "calm"), **first)
    forge().start("support.work:counted", call="merge", out=str(tmp_path / "out"), die_at=steps // 2, **first)
    assert forge().wait().code == 77
    if change == "input":
        fine_tune_of(models["base"], tmp_path / "m2", seed=99)
        second = first
    elif change == "parameter":
        second["parameters"] = {"scale": 0.5}
    elif change == "method":
        second["method"] = "task_arithmetic"
    else:
        second["shard_size"] = "1500"
    forge().run("support.work:merge", out=str(tmp_path / "out"), **second)
    forge().run("support.work:merge", out=str(tmp_path / "fresh"), **second)
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh") != weights(tmp_path / "calm")


def test_what_was_left_is_not_believed_blindly(tmp_path: Path, models: dict[str, Any]) -> None:
    """Bytes that are not what the journal says: said with the file and what to do, and not built upon."""
    arguments = {**models, **PIECES, **CASES["ties"], "call": "merge", "out": str(tmp_path / "out")}
    kinds, expected, _ = undisturbed("ties", models, tmp_path / "calm")
    forge().start("support.work:counted", die_at=int(len(kinds) * 0.8), **arguments)
    assert forge().wait().code == 77
    left = tmp_path / ".out.nett-partial"
    with (left / "model.safetensors").open("r+b") as file:
        file.seek(2000)
        byte = file.read(1)
        file.seek(2000)
        file.write(bytes([byte[0] ^ 1]))
    forge().start("support.work:merge", **{k: v for k, v in arguments.items() if k != "call"})
    ended = forge().wait()
    assert ended.code == 1 and "does not hold what its journal says" in ended.error and str(left) in ended.error
    assert "Delete" in ended.error and not (tmp_path / "out").exists()
    shutil.rmtree(left)
    forge().run("support.work:counted", **arguments)
    assert weights(tmp_path / "out") == expected
