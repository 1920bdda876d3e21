"""``nett verify --rerun`` of a recipe's output, in another folder than the one that the recipe's paths are relative to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cli import Said, nett
from support.recipes import Model, write_family, write_recipe
from support.tensors import write_tensors

SAME = "came out with the same bytes"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return write_family(tmp_path / "work")


def adapter(folder: str) -> str:
    """An adapter that names its base by a path relative to the working folder."""
    shape = (4, 4)
    factors = {
        f"base_model.model.{QUERY.removesuffix('.weight')}.lora_{side}.weight": np.eye(*shape, dtype=np.float32)[:2]
        if side == "A"
        else np.ones((4, 2), np.float32)
        for side in "AB"
    }
    write_tensors(Path(folder) / "adapter_model.safetensors", factors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    Path(folder, "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    return folder


def run(recipe: Any, *words: str) -> dict[str, Any]:
    nett("merge", str(write_recipe(Path("r.yml"), recipe)), "--out", "out", "--no-speak", *words).succeeded()
    receipt: dict[str, Any] = json.loads(Path("out/nett.json").read_text())
    return receipt


def rerun(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str = "work/out") -> Said:
    monkeypatch.chdir(folder)
    return nett("verify", out, "--rerun")


def linear(*models: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": i + 1}} for i, m in enumerate(models)],
    }


def test_paths_and_adapters(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter("lora")
    receipt = run(linear("a", "./b", "c+lora", "lora"))
    here = Path.cwd()
    assert receipt["references"] == {
        "a": f"{here}/a", "./b": f"{here}/b", "c+lora": f"{here}/c+{here}/lora",
        "lora": f"{here}/base+{here}/lora",
    }  # fmt: skip
    assert SAME in rerun(tmp_path, monkeypatch).succeeded().out


def test_of_the_command_line(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are opened over the base that they were opened over."""
    adapter("lora")
    nett("merge", "linear", "a+lora", "lora", "b", "--out", "out", "--no-speak").succeeded()
    assert SAME in rerun(tmp_path, monkeypatch).succeeded().out


def test_as_an_adapter(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = linear("a", "b") | {"base_model": "base", "merge_method": "task_arithmetic"}
    run(recipe, "--as-lora", "2")
    said = rerun(tmp_path, monkeypatch).succeeded().out
    assert SAME in said and "adapter: relative error" in said


def test_steps(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter("lora")
    first = "name: early\nmerge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
    last = "---\nmerge_method: linear\nmodels:\n  - {model: early+lora, parameters: {weight: 1}}\n  - {model: b, parameters: {weight: 1}}\n"
    receipt = run(first + last)
    assert sorted(receipt["references"]) == ["a", "b", "early+lora"]
    assert SAME in rerun(tmp_path, monkeypatch).succeeded().out


def test_a_branch_that_went_on(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot that was merged, not the one that the branch leads to by now; called by the repository's name."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--org--model"
    for name, commit in (("a", "a1" * 20), ("b", "b2" * 20)):
        write_tensors(folder / "snapshots" / commit / "model.safetensors", models[name])
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a1" * 20)
    receipt = run(linear("org/model", "c"))
    (folder / "refs" / "main").write_text("b2" * 20)
    assert [i["name"] for i in receipt["inputs"]] == ["model", "c"]
    assert SAME in rerun(tmp_path, monkeypatch).succeeded().out
    shutil.rmtree(folder / "snapshots" / ("a1" * 20))
    rerun(tmp_path, monkeypatch).failed(4, "rerun")


def test_all_moved_together(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(linear("a", "b"))
    monkeypatch.chdir(tmp_path)
    Path("work").rename("archive")
    assert SAME in rerun(tmp_path / "archive", monkeypatch, "out").succeeded().out


def test_a_model_that_moved_away(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(linear("a", "b"))
    shutil.move("a", tmp_path / "elsewhere")
    said = rerun(tmp_path, monkeypatch)
    said.failed(4, "rerun")
    assert f"could not be done: 'a' of the recipe lay at {tmp_path}/work/a, which is not there any more" in said.out
