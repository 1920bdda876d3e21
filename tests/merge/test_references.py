"""``path@revision`` and ``org/name``: what lies in the local cache is found, nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cli import nett
from support.recipes import Model, write_family, write_recipe
from support.tensors import read_tensors, write_tensors

OLD, NEW = "a1" * 20, "b2" * 20


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """A cache with two snapshots of org/model: a is old (tag v1), b is new (main)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    models = write_family(tmp_path)
    folder = tmp_path / "hub" / "models--org--model"
    for name, commit, ref in (("a", OLD, "tags/v1"), ("b", NEW, "main")):
        write_tensors(folder / "snapshots" / commit / "model.safetensors", models[name])
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return models


def taken(reference: Any) -> Model:
    write_recipe(Path("r.yml"), {"merge_method": "passthrough", "models": [{"model": reference}]})
    nett("merge", "r.yml", "--out", "out", "--no-speak", "--overwrite").succeeded()
    return read_tensors(Path("out"))


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("org/model", "b"), ("org/model@main", "b"), ("org/model@tags/v1", "a"), (f"org/model@{OLD}", "a"),
        ("org/model@" + OLD[:9], "a"), ("hub/models--org--model", "b"), ("hub/models--org--model@tags/v1", "a"),
        ({"model": {"path": "org/model", "revision": "tags/v1"}}, "a"), ({"path": "org/model", "revision": None}, "b"),
    ],
)  # fmt: skip
def test_snapshots(reference: Any, name: str, models: dict[str, Model]) -> None:
    found = taken(reference)
    assert all(np.array_equal(found[n], a) for n, a in models[name].items())


def test_they_are_called_by_their_names_and_recognised_as_the_base(models: dict[str, Model]) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "org/model", "models": [
        {"model": "org/model@tags/v1", "parameters": {"weight": 0.5}}, {"model": "c", "parameters": {"weight": 1}}]}  # fmt: skip
    write_recipe(Path("r.yml"), recipe)
    rows = json.loads(nett("merge", "explain", "r.yml", "--json", "--tensor", "lm_head*").succeeded().out)
    assert {r["model"] for r in rows if r["parameter"] == "weight"} == {"model", "c"}
    recipe["models"] = [*recipe["models"], {"model": "org/model@main"}]  # type: ignore[misc]
    write_recipe(Path("r.yml"), recipe)
    nett("merge", "explain", "r.yml").failed(2, "'org/model@main' is 'org/model' of line 2, spelt in another way")


def adapter(folder: Path) -> None:
    at = "base_model.model.model.layers.1.self_attn.q_proj"
    ones = {f"{at}.lora_A.weight": np.ones((1, 4), np.float32), f"{at}.lora_B.weight": np.ones((4, 1), np.float32)}
    write_tensors(folder / "adapter_model.safetensors", ones)
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 2,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "x",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_adapters_in_slices_and_on_the_base_with_revisions(models: dict[str, Model], tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--lora"
    adapter(folder / "snapshots" / NEW)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(NEW)
    adapter(tmp_path / "lora")
    for reference in (
        "org/model@tags/v1+org/lora",
        "a+lora",
        "a+org/lora@main",
        {"model": {"path": "org/model", "revision": "tags/v1"}, "lora": "lora"},
    ):
        write_recipe(Path("r.yml"), {
            "merge_method": "task_arithmetic", "base_model": reference,
            "slices": [{"sources": [{"model": reference, "layer_range": [0, 3]}, {"model": "c", "layer_range": [0, 3], "parameters": {"weight": 1}}]}],
        })  # fmt: skip
        nett("merge", "r.yml", "--out", "out", "--no-speak", "--overwrite").succeeded()
        assert all(np.allclose(v, models["c"][n], atol=1e-6) for n, v in read_tensors(Path("out")).items())
        write_recipe(
            Path("r.yml"),
            {"merge_method": "passthrough", "slices": [{"sources": [{"model": reference, "layer_range": [1, 2]}]}]},
        )
        nett("merge", "r.yml", "--out", "out", "--no-speak", "--overwrite").succeeded()
        wanted = models["a"]["model.layers.1.self_attn.q_proj.weight"] + 2
        np.testing.assert_allclose(
            read_tensors(Path("out"))["model.layers.0.self_attn.q_proj.weight"], wanted, rtol=1e-6
        )


def test_a_git_checkout_says_what_it_holds(models: dict[str, Model]) -> None:
    git = Path("a/.git")
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/work\n")
    (git / "refs" / "heads" / "work").write_text(OLD)
    (git / "packed-refs").write_text(f"# pack-refs\n{OLD} refs/tags/v2\n{NEW} refs/tags/v3\n")
    for revision in ("work", OLD, OLD[:7], "v2"):
        assert np.array_equal(taken(f"a@{revision}")["model.norm.weight"], models["a"]["model.norm.weight"])
    write_recipe(Path("r.yml"), {"merge_method": "passthrough", "models": [{"model": "a@v3"}]})
    nett("merge", "r.yml", "--out", "o").failed(
        2, "the revision 'v3' of 'a' is asked for", "has work = v2 =", "checked out"
    )
    write_recipe(Path("r.yml"), {"merge_method": "passthrough", "models": [{"model": "b@main"}]})
    nett("merge", "r.yml", "--out", "o").failed(2, "'b'", "is no git checkout and no cache of the hub")


def test_what_is_not_in_the_cache(models: dict[str, Model]) -> None:
    for reference, parts in (
        ("org/model@v9", ["holds 'org/model', but not its revision 'v9'", "main", "tags/v1", OLD[:12]]),
        ("org/model@../../x", ["not its revision '../../x'"]),
        ("org/other@main", ["'org/other@main' names a revision that is not in the local cache", "downloads nothing"]),
    ):
        write_recipe(Path("r.yml"), {"merge_method": "passthrough", "models": [{"model": reference}]})
        nett("merge", "r.yml", "--out", "o").failed(2, "r.yml:3 merge/passthrough", *parts)
    write_recipe(Path("r.yml"), {"merge_method": "passthrough", "models": [{"model": "org/other"}]})
    nett("merge", "r.yml", "--out", "o").failed(3, "no such file or folder", "downloads nothing")
