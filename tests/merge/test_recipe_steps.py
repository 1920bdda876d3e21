"""Recipes of several documents: order, receipt, resumption, what is kept and what is removed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import engine, execution
from support.cli import nett
from support.recipes import Model, write_family, write_recipe
from support.tensors import read_tensors

RECIPE = """\
name: late
merge_method: passthrough
models: [{model: early, parameters: {scale: 3}}]
---
merge_method: linear
models:
  - {model: late, parameters: {weight: 1}}
  - {model: c, parameters: {weight: 1}}
---
name: early
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 3}}
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "r.yml", RECIPE)
    return write_family(tmp_path)


def run(*words: str) -> dict[str, Any]:
    nett("merge", "r.yml", "--out", "out", "--no-speak", *words).succeeded()
    receipt: dict[str, Any] = json.loads(Path("out/nett.json").read_text())
    return receipt


def check(models: dict[str, Model], out: str = "out") -> None:
    for name, found in read_tensors(Path(out)).items():
        a, b, c = (models[m][name].astype(np.float64) for m in "abc")
        np.testing.assert_allclose(found, (3 * (a + 3 * b) / 4 + c) / 2, rtol=1e-5, atol=1e-6)


def test_steps_are_taken_in_the_order_of_need_and_removed(models: dict[str, Model]) -> None:
    receipt = run()
    check(models)
    assert [s["name"] for s in receipt["steps"]] == ["early", "late"]
    assert [s["method"] for s in receipt["steps"]] == ["linear", "passthrough"] and receipt["method"] == "linear"
    assert {Path(i["path"]).name for i in receipt["inputs"]} == {"a", "b", "c"}
    assert receipt["bytes_before"] == sum(i["bytes"] for i in receipt["inputs"])
    assert {Path(s).name for s in receipt["edges"][0]["sources"]} == {"a", "b", "c"}
    assert all(o["sha256"] for s in receipt["steps"] for o in s["outputs"]) and receipt["recipe"] == RECIPE
    assert sorted(p.name for p in Path().iterdir()) == ["a", "b", "base", "c", "out", "r.yml"]
    nett("verify", "out", "--rerun").succeeded()
    assert "early" in Path("out/nett.html").read_text()


def test_steps_that_are_kept(models: dict[str, Model]) -> None:
    run("--keep-steps", "steps")
    check(models)
    early = read_tensors(Path("steps/early"))
    assert all(np.allclose(v, (models["a"][n] + 3 * models["b"][n]) / 4, atol=1e-6) for n, v in early.items())
    assert json.loads(Path("steps/late/nett.json").read_text())["method"] == "passthrough"
    before = Path("steps/early/nett.json").stat().st_mtime_ns
    run("--keep-steps", "steps", "--overwrite")
    assert Path("steps/early/nett.json").stat().st_mtime_ns == before  # the same work, whole: taken as it lies


def test_a_run_that_was_cut_off_goes_on(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = execution.execute, []

    def execute(job: Any, **given: Any) -> Any:
        calls.append(given["out"].name)
        if calls == ["early", "late"]:
            raise KeyboardInterrupt
        return real(job, **given)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "execute", execute)
        with pytest.raises(KeyboardInterrupt):
            engine.recipe(Path("r.yml"), out=Path("out"), speak=False)
    hidden = Path(".out.nett-steps")
    done = (hidden / "early" / "nett.json").stat().st_mtime_ns
    assert not Path("out").exists()
    (hidden / "other").mkdir()  # of another recipe
    seen: list[int] = []

    def watched(job: Any, **given: Any) -> Any:
        made = real(job, **given)
        if given["out"].name == "early":
            seen.append((hidden / "early" / "nett.json").stat().st_mtime_ns)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(execution, "execute", watched)
        engine.recipe(Path("r.yml"), out=Path("out"), speak=False)
    assert seen == [done] and not hidden.exists()
    check(models)


def test_a_step_that_was_changed_is_done_again(models: dict[str, Model]) -> None:
    run("--keep-steps", "steps")
    file = Path("steps/early/model.safetensors")
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(blob)
    nett("merge", "r.yml", "--out", "o2", "--no-speak", "--keep-steps", "steps").failed(3, "early", "not empty")
    run("--keep-steps", "steps", "--overwrite")
    check(models)


def test_all_is_planned_before_anything_is_written(models: dict[str, Model]) -> None:
    """A shape that does not fit in the last step is found before the first one runs."""
    text = RECIPE.replace(
        "{model: c, parameters: {weight: 1}}", "{model: c, parameters: {weight: {filter: nothing, value: 1}}}"
    )
    write_recipe(Path("r.yml"), text)
    nett("merge", "r.yml", "--out", "out").failed(2, "r.yml:8", "the filter 'nothing' matches no tensor")
    write_recipe(
        Path("r.yml"),
        RECIPE.replace(
            "models: [{model: early, parameters: {scale: 3}}]",
            "slices: [{sources: [{model: early, layer_range: [0, 3]}]}]",
        ),
    )
    nett("merge", "r.yml", "--out", "out").failed(3, "has no tensor 'model.layers.3.input_layernorm.weight'", "late")
    assert sorted(p.name for p in Path().iterdir()) == ["a", "b", "base", "c", "r.yml"]


def test_dry_run_and_explain(models: dict[str, Model]) -> None:
    plan = json.loads(nett("merge", "r.yml", "--out", "out", "--dry-run").succeeded().out)
    assert [s["name"] for s in plan["steps"]] == ["early", "late"] and plan["disk_bytes"] > plan["files"][0]["bytes"]
    rows = json.loads(nett("merge", "explain", "r.yml", "--json", "--tensor", "lm_head*").succeeded().out)
    told = {(r["document"], r["model"], r["parameter"]): r["value"] for r in rows}
    assert (
        told["early", "b", "weight"] == 3 and told["late", "early", "scale"] == 3 and told[None, "late", "weight"] == 1
    )
    text = nett("merge", "explain", "r.yml").succeeded().out
    assert "r.yml, early: linear" in text and "r.yml, late: passthrough" in text and "r.yml: linear" in text
    assert not Path("out").exists() and not Path(".out.nett-steps").exists()


WRONG = {
    "a name twice": ("name: late", "name: early", 10, ["the name 'early' stands twice (line 1)"]),
    "no result": ("---\nmerge_method: linear", "---\nname: x\nmerge_method: linear", 11, ["no document is without a name"]),
    "two results": ("name: early\n", "", 10, ["2 documents are without a name"]),
    "a circle": ("{model: a, ", "{model: late, ", None, ["the documents need each other", "late -> early -> late"]),
    "needing itself": ("{model: a, ", "{model: early, ", 10, ["early -> early"]),
    "an unknown name": ("{model: late, ", "{model: lat, ", 7, ["lat: there is no such file", "Did you mean 'late'? That is a document of this file"]),
    "a step for nothing": ("{model: late, ", "{model: b, ", 1, ["no other document is made of 'late'", "--keep-steps"]),
    "a revision of a step": ("{model: late, ", "{model: late@main, ", 7, ["'late' is the document of line 1", "no revision 'main'"]),
    "a name that is a path": ("name: late", "name: ../late", 1, ["name = '../late' cannot be the name"]),
    "a name that is a number": ("name: late", "name: 3", 1, ["name = 3"]),
    "an empty document": ("---\nname: early", "---\n---\nname: early", 10, ["document 3 is empty", "Remove the line"]),
    "a document that is a list": ("---\nname: early", "---\n- x\n---\nname: early", 10, ["is not a mapping"]),
    "a mistake in the last document": ("weight: 3}", "wieght: 3}", 14, ["unknown parameter 'wieght'", "Did you mean 'weight'"]),
    "a key twice in a document": ("name: early\n", "name: early\nname: early\n", 11, ["has the key 'name' twice"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refused(case: str, models: dict[str, Model]) -> None:
    old, new, line, parts = WRONG[case]
    assert RECIPE.count(old) == 1
    write_recipe(Path("r.yml"), RECIPE.replace(old, new))
    before = sorted(p.name for p in Path().iterdir())
    code = 3 if case == "an unknown name" else 2
    said = nett("merge", "r.yml", "--out", "out", "--no-speak")
    said.failed(code, *parts)
    if line is not None:
        assert f"r.yml:{line} " in said.err or f"r.yml:{line}:" in said.err, said.err
    if case != "a step for nothing":
        nett("merge", "explain", "r.yml").failed(code, *parts)
    assert sorted(p.name for p in Path().iterdir()) == before


def test_one_document_has_no_steps(models: dict[str, Model]) -> None:
    write_recipe(Path("r.yml"), "name: x\nmerge_method: passthrough\nmodels: [{model: a}]\n")
    nett("merge", "r.yml", "--out", "out", "--keep-steps", "d").failed(
        2, "has one document, so there are no steps to keep"
    )
    assert any("name (line 1) has no effect" in n for n in run()["notes"])


def test_an_empty_first_document_is_named(tmp_path: Path) -> None:
    """As a later one is: by its line, with what to do."""
    (tmp_path / "e.yml").write_text("---\n---\nmerge_method: linear\n")
    with pytest.raises(UsageError, match="document 1 is empty") as found:
        engine.recipe(tmp_path / "e.yml", out=tmp_path / "out")
    assert f"{tmp_path / 'e.yml'}:" in str(found.value.where) and "---" in str(found.value.hint)
