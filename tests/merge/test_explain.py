"""``nett merge explain``: every parameter of every tensor and model, against rules of lookup written once more."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.merge.explain import explain
from support.cli import nett
from support.recipes import NAMES, depth, resolved, write_family, write_recipe
from support.shared import made_once

PARTS = ["mlp", "self_attn", "norm", "layers.1", "model.", ".weight", "embed_tokens", "lm_head", "down_proj", "0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_family(tmp_path)
    return tmp_path


def family() -> Path:
    def make(place: Path) -> str:
        write_family(place)
        return str(place)

    return Path(made_once("recipes", make))


def numbers(low: float = -2.0, high: float = 2.0) -> st.SearchStrategy[Any]:
    plain = st.floats(low, high, allow_nan=False).map(lambda v: round(v, 3))
    return plain | st.integers(round(low), round(high)) | plain.map(str) | plain.map(lambda v: f"{v:e}")


def settings_of(scalar: st.SearchStrategy[Any], *, complete: bool = False) -> st.SearchStrategy[Any]:
    """All forms that a parameter may have; ``complete``: so that every tensor gets a value."""
    plain = scalar | st.lists(scalar, min_size=1 if complete else 0, max_size=5)
    some = st.fixed_dictionaries(
        {"filter": st.sampled_from([*PARTS, "*"]), "value": scalar | st.lists(scalar, min_size=1, max_size=4)}
    )
    last = st.fixed_dictionaries({"value": scalar | st.lists(scalar, min_size=1, max_size=4)})
    conditions = st.builds(
        lambda most, end: [*most, *end], st.lists(some, max_size=3), st.lists(last, min_size=1, max_size=1)
    )
    return plain | conditions if complete else plain | conditions | some | st.lists(some, min_size=1, max_size=3)


@st.composite
def recipes(draw: Any) -> dict[str, Any]:
    own = st.fixed_dictionaries({}, optional={"weight": settings_of(numbers()), "density": settings_of(numbers(0, 1))})
    top = st.fixed_dictionaries(
        {"weight": settings_of(numbers(), complete=True)},
        optional={
            "density": settings_of(numbers(0, 1)),
            "lambda": settings_of(numbers()),
            "normalize": settings_of(st.booleans()),
        },
    )
    models = [{"model": m, "parameters": draw(own)} for m in ("a", "b")]
    return {"merge_method": "ties", "base_model": "base", "models": [*models, {"model": "c"}], "parameters": draw(top)}


@settings(max_examples=25)
@given(recipes())
def test_any_settings_resolve_by_the_rules(recipe: dict[str, Any]) -> None:
    place = family()
    full = recipe | {
        "base_model": str(place / "base"),
        "models": [m | {"model": str(place / m["model"])} for m in recipe["models"]],
    }
    with tempfile.TemporaryDirectory() as name:
        rows = explain([str(write_recipe(Path(name) / "r.yml", full))], json=True)
    found = {(r["tensor"], r["model"], r["parameter"]): r for r in rows}  # type: ignore[index]
    top = recipe["parameters"]
    expected = {}
    for tensor in NAMES:
        for name, default in (("lambda", 1.0), ("normalize", True)):
            expected[tensor, None, name] = resolved(name, tensor, [top], default)
        for model in recipe["models"]:
            for name, default in (("weight", None), ("density", 1.0)):
                expected[tensor, model["model"], name] = resolved(name, tensor, [model.get("parameters"), top], default)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, bool):
            assert found[key]["value"] is value, key
        else:
            assert found[key]["value"] == pytest.approx(value, rel=1e-12, abs=1e-12), key
        assert found[key]["t"] == pytest.approx(depth(key[0]))


RECIPE = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      weight:
        - filter: mlp
          value: [0.1, 0.7]
        - value: 0.5
  - model: b
    parameters: {weight: 1}
parameters: {density: "4e-1", int8_mask: true}
out_dtype: bfloat16
"""


def test_json_names_the_line_that_each_value_comes_from(folder: Path) -> None:
    write_recipe(Path("r.yml"), RECIPE)
    rows = json.loads(nett("merge", "explain", "r.yml", "--json").succeeded().out)
    assert all(list(r) == ["tensor", "t", "model", "parameter", "value", "from"] for r in rows)
    found = {(r["tensor"], r["model"], r["parameter"]): (r["value"], r["from"]) for r in rows}
    assert len(found) == len(rows) == len(NAMES) * 6
    mlp = "model.layers.2.mlp.down_proj.weight"
    value, source = found[mlp, "a", "weight"]
    assert value == pytest.approx(0.5) and source.startswith("line 7") and "t = 0.6667" in source
    assert found["lm_head.weight", "a", "weight"] == (0.5, "line 9")
    assert found[mlp, "b", "weight"] == (1, "line 11") and found[mlp, "a", "density"] == (0.4, "line 12")
    assert found[mlp, None, "lambda"] == (1.0, "default") and found[mlp, None, "normalize"] == (True, "default")


def test_text_tells_the_same(folder: Path) -> None:
    write_recipe(Path("r.yml"), RECIPE)
    said = nett("merge", "explain", "r.yml").succeeded().out
    for tensor in NAMES:
        assert f"\n{tensor}\n" in said or said.startswith(tensor)
    for part in (
        f"r.yml: ties, {len(NAMES)} tensors", "base     base", "model    a: a", "output bfloat16", "tie_policy = lowest-index",
        "filter 'mlp' (line 7) matches 4 of 15 tensors", "int8_mask: true (line 12) has no effect on ties",
        "density = 0.4 (line 12)", "weight = 1 (line 11)",
    ):  # fmt: skip
        assert part in said, part
    rows = json.loads(nett("merge", "explain", "r.yml", "--json").succeeded().out)
    blocks = said.split("\n\n")
    for row in rows:  # each value stands in the block of its tensor
        (block,) = [b for b in blocks if row["tensor"] in b.split("\n")]
        shown = str(row["value"]).lower() if isinstance(row["value"], bool) else f"{row['value']:.10g}"
        assert f"{row['parameter']} = {shown} ({row['from']})" in block


def test_one_tensor(folder: Path) -> None:
    write_recipe(Path("r.yml"), RECIPE)
    rows = json.loads(nett("merge", "explain", "r.yml", "--json", "--tensor", "*layers.[01].mlp*").succeeded().out)
    assert {r["tensor"] for r in rows} == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    nett("merge", "explain", "r.yml", "--tensor", "*mpl*").failed(2, "*mpl*")


def test_what_is_explained_is_what_runs(folder: Path) -> None:
    """The receipt of the run names the same values where they are one for all tensors."""
    write_recipe(Path("r.yml"), RECIPE.replace("[0.1, 0.7]", "0.5"))
    nett("merge", "r.yml", "--out", "out", "--no-speak").succeeded()
    told = json.loads(Path("out/nett.json").read_text())["parameters"]
    assert told["density"] == [0.4, 0.4] and told["weight"] == [0.5, 1] and told["scale"] == 1.0
    assert told["scope"] == "tensor" and told["weight_in_election"] is True


def test_reads_headers_only(folder: Path) -> None:
    """The weights may be anything: explain does not look at them."""
    file = Path("a/model.safetensors")
    blob = bytearray(file.read_bytes())
    blob[-64:] = b"\xff" * 64
    file.write_bytes(blob)
    write_recipe(Path("r.yml"), RECIPE)
    nett("merge", "explain", "r.yml").succeeded()


def test_errors(folder: Path) -> None:
    nett("merge", "explain").failed(2, "takes one recipe, but 0 were given")
    nett("merge", "explain", "a.yml", "b.yml").failed(2, "takes one recipe, but 2 were given")
    nett("merge", "explain", "nowhere.yml").failed(2, "nowhere.yml", "cannot be read")
