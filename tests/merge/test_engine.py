"""The merge room's engine: plan, element types, shards, side files, receipt, aftercare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from nett.core import aftercare
from nett.core.cards import find_card
from nett.core.edge import SCHEMA
from nett.core.errors import ProofFailed, Refused
from nett.core.tiny import fine_tune_of, write_llama
from nett.merge import engine
from support.cli import nett
from support.forge import forge
from support.tensors import header_of, read_tensors, rounded, write_tensors


@pytest.fixture
def llamas(tmp_path: Path) -> list[str]:
    """A pico Llama and two fine-tunes of it."""
    base = write_llama(tmp_path / "base")
    return [str(base), *(str(fine_tune_of(base, tmp_path / f"m{i}", seed=i)) for i in (1, 2))]


def run(method: str, models: list[str], out: Path, *words: str) -> dict[str, Any]:
    nett("merge", method, *models[1:], "--base", models[0], "--out", str(out), "--no-speak", *words).succeeded()
    receipt: dict[str, Any] = json.loads((out / "nett.json").read_text())
    return receipt


def test_receipt_says_what_was_done(llamas: list[str], tmp_path: Path) -> None:
    receipt = run("ties", llamas, tmp_path / "out", "--density", "0.3", "--shard-size", "20KB")
    assert (receipt["room"], receipt["method"], receipt["papers"]) == ("merge", "ties", ["P10"])
    assert receipt["parameters"] == find_card("merge/ties").resolve({"density": 0.3})
    assert [(i["name"], i["role"]) for i in receipt["inputs"]] == [("base", "base"), ("m1", "model"), ("m2", "model")]
    for given, path in zip(receipt["inputs"], llamas, strict=True):
        assert given["path"] == path
        for file in given["files"]:
            blob = Path(file["path"]).read_bytes()
            assert (file["bytes"], file["sha256"]) == (len(blob), hashlib.sha256(blob).hexdigest())
    on_disk = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*")}
    assert {o["path"] for o in receipt["outputs"]} | {"nett.json", "nett.html"} == on_disk
    for output in receipt["outputs"]:
        blob = (tmp_path / "out" / output["path"]).read_bytes()
        assert (output["bytes"], output["sha256"]) == (len(blob), hashlib.sha256(blob).hexdigest())
    assert receipt["bytes_after"] == sum(o["bytes"] for o in receipt["outputs"])
    assert receipt["bytes_before"] == sum(a.nbytes // 2 for p in llamas for a in read_tensors(Path(p)).values())
    assert receipt["proof"] == "kept" and all(c["ok"] for c in receipt["checks"])
    for edge in receipt["edges"]:
        jsonschema.validate(edge, SCHEMA)
    assert receipt["edges"][0]["sources"] == llamas and receipt["edges"][0]["method"] == "merge/ties"
    base, merged = read_tensors(Path(llamas[0])), read_tensors(tmp_path / "out")
    moved, size = 0.0, 0.0
    for row in receipt["tensors"]:
        b, m = (t[row["name"]].astype(np.float64) for t in (base, merged))
        moved, size = moved + np.sum((m - b) ** 2), size + np.sum(b**2)
        assert row["relative_change"] == pytest.approx((np.sum((m - b) ** 2) / np.sum(b**2)) ** 0.5, rel=1e-9)
    assert len(receipt["tensors"]) == len(base)
    assert receipt["figures"]["relative_change"] == pytest.approx((moved / size) ** 0.5, rel=1e-9)


def test_shards_and_their_index(llamas: list[str], tmp_path: Path) -> None:
    """Each at most as large as asked, named as transformers names them, together the same as one file."""
    run("ties", llamas, tmp_path / "one")
    run("ties", llamas, tmp_path / "many", "--shard-size", "9KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    count = len(shards)
    assert count > 3 and [s.name for s in shards] == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    for shard in shards:
        names = [n for n in header_of(shard) if n != "__metadata__"]
        data = sum(e["data_offsets"][1] - e["data_offsets"][0] for n, e in header_of(shard).items() if n in names)
        assert data <= 9000 or len(names) == 1
        assert all(index["weight_map"][n] == shard.name for n in names)
    one, many = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "many")
    assert index["metadata"]["total_size"] == sum(a.nbytes // 2 for a in one.values())
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(np.array_equal(one[n], many[n]) for n in one)


def test_sharded_inputs_are_the_same_models(llamas: list[str], tmp_path: Path) -> None:
    write_llama(tmp_path / "sharded", shards=3)
    run("ties", llamas, tmp_path / "one")
    run("ties", [str(tmp_path / "sharded"), *llamas[1:]], tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_safetensors_loads_it(llamas: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    run("ties", llamas, tmp_path / "out", "--dtype", "float32")
    loaded = library.load_file(tmp_path / "out" / "model.safetensors")
    ours = read_tensors(tmp_path / "out")
    assert loaded.keys() == ours.keys() and all(np.array_equal(loaded[n], ours[n]) for n in ours)
    header = header_of(tmp_path / "out" / "model.safetensors")
    assert header["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["float32", "bf16", "torch.float16", "float64", "float8_e5m2"])
def test_output_type(llamas: list[str], tmp_path: Path, dtype: str) -> None:
    """Rounded once from float32, and the config says so."""
    run("task_arithmetic", llamas, tmp_path / "wide", "--dtype", "float32")
    receipt = run("task_arithmetic", llamas, tmp_path / "out", "--dtype", dtype)
    names = {"float32": "F32", "bf16": "BF16", "torch.float16": "F16", "float64": "F64", "float8_e5m2": "F8_E5M2"}
    kinds = {e["dtype"] for n, e in header_of(tmp_path / "out" / "model.safetensors").items() if n != "__metadata__"}
    assert kinds == {names[dtype]}
    alias = {"bf16": "bfloat16"}.get(dtype, dtype.removeprefix("torch."))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == alias
    assert receipt["options"]["dtype"] == dtype
    if dtype != "float8_e5m2":
        wide, found = read_tensors(tmp_path / "wide"), read_tensors(tmp_path / "out")
        assert all(np.array_equal(found[n], rounded(a, names[dtype])) for n, a in wide.items())


def test_side_files_come_from_the_base(llamas: list[str], tmp_path: Path) -> None:
    (Path(llamas[0]) / "chat_template.jinja").write_text("base's")
    (Path(llamas[0]) / "private-notes.txt").write_text("not a side file")
    (Path(llamas[1]) / "chat_template.jinja").write_text("tuned")
    run("ties", llamas, tmp_path / "out")
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    found = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    assert found.keys() == wanted | {"model.safetensors", "nett.json", "nett.html"}
    assert all(found[n] == (Path(llamas[0]) / n).read_bytes() for n in wanted)


def test_without_a_base_they_come_from_the_first_model(llamas: list[str], tmp_path: Path) -> None:
    (Path(llamas[1]) / "chat_template.jinja").write_text("first")
    nett("merge", "linear", *llamas[1:], "--out", str(tmp_path / "out"), "--no-speak").succeeded()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "first"


def test_integers_empty_tensors_and_scalars(tmp_path: Path) -> None:
    """Integers and booleans are copied from the base, and said; tensors without elements stay; scalars are merged."""
    for i, name in enumerate(("base", "m1", "m2")):
        tensors = {
            "count": np.array([i, 7], np.int64), "flags": np.array([i > 0]), "none": np.zeros((0, 3)),
            "scalar": np.array(float(i)), "w": np.full(5, float(i)),
        }  # fmt: skip
        write_tensors(tmp_path / name / "model.safetensors", tensors)
    paths = [str(tmp_path / n) for n in ("base", "m1", "m2")]
    receipt = run("task_arithmetic", paths, tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    assert found["count"].tolist() == [0, 7] and found["flags"].tolist() == [False]
    assert found["none"].shape == (0, 3) and found["scalar"] == 3 and found["w"].tolist() == [3] * 5
    assert any("count (I64) is copied" in note for note in receipt["notes"])


def test_tied_output_layer_is_found_in_the_embeddings(tmp_path: Path) -> None:
    """A fine-tune that unties its output layer, over a base that ties it: the base's embeddings stand in."""
    base = write_llama(tmp_path / "base", tied=True)
    tensors = read_tensors(base)
    head = tensors["model.embed_tokens.weight"] + np.float32(0.5)
    write_tensors(tmp_path / "m" / "model.safetensors", tensors | {"lm_head.weight": head}, "BF16")
    run("task_arithmetic", [str(base), str(tmp_path / "m")], tmp_path / "out")
    np.testing.assert_array_equal(read_tensors(tmp_path / "out")["lm_head.weight"], rounded(head, "BF16"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False  # else loaders take the embeddings and pass over the head


def test_models_that_all_tie_their_output_layer_stay_tied(tmp_path: Path) -> None:
    """Also where a redundant copy of it is stored."""
    base = write_llama(tmp_path / "base", tied=True)
    copy = write_llama(tmp_path / "m", tied=True, noise_from=base, seed=1)
    tensors = read_tensors(copy)
    write_tensors(
        copy / "model.safetensors", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, "BF16"
    )
    for out, paths in (("two", [base, write_llama(tmp_path / "n", noise_from=base, seed=2)]), ("copy", [base, copy])):
        run("task_arithmetic", [str(p) for p in paths], tmp_path / out)
        assert json.loads((tmp_path / out / "config.json").read_text())["tie_word_embeddings"] is True


def test_dry_run_plans_and_touches_nothing(llamas: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = ["merge", "tall_masks", *llamas[1:], "--base", llamas[0], "--out", str(tmp_path / "deep" / "out")]
    plan = json.loads(nett(*words, "--dry-run").succeeded().out)
    assert sorted(tmp_path.rglob("*")) == before
    count = sum(a.size for a in read_tensors(Path(llamas[0])).values())
    assert plan["plan"]["parameters"] == count and plan["plan"]["models"] == 2
    assert plan["plan"]["bytes_read"] == 3 * 2 * count
    assert [f["path"] for f in plan["files"]] == [
        "multi_task_vector.safetensors", "masks/m1.safetensors", "masks/m2.safetensors",
    ]  # fmt: skip
    assert nett("--dry-run", *words).out == nett(*words, "--dry_run").out


def test_peak_memory_stays_under_the_plan(tmp_path: Path) -> None:
    """With the engine's own chunk sizes, over 24 million parameters."""
    rng = np.random.default_rng(0)
    block = rng.normal(size=(1 << 21,)).astype(np.float32)
    paths = []
    for name in ("base", "m1", "m2"):
        tensors = {f"w{i}": np.roll(block, len(paths)) for i in range(12)}
        write_tensors(tmp_path / name / "model.safetensors", tensors, "BF16")
        paths.append(str(tmp_path / name))
    card = find_card("merge/ties")
    plan = engine.run(card, paths[1:], {}, base=Path(paths[0]), out=tmp_path / "out", threads=2, dry_run=True)["plan"]
    used = forge().run(
        "support.work:peak_memory", method="ties", models=paths[1:], base=paths[0], out=str(tmp_path / "out"), threads=2
    )
    assert 1 << 20 < used < plan["peak_memory_bytes"] < 400_000_000


def test_nothing_is_read_that_is_not_needed(llamas: list[str], tmp_path: Path) -> None:
    """A plan is refused from headers alone: weights full of NaN do not matter to it, shapes do."""
    tensors = {n: np.full_like(a, np.nan) for n, a in read_tensors(Path(llamas[1])).items()}
    write_tensors(tmp_path / "nan" / "model.safetensors", tensors, "F32")
    card = find_card("merge/linear")
    assert "plan" in engine.run(card, [llamas[0], str(tmp_path / "nan")], {}, out=tmp_path / "out", dry_run=True)
    with pytest.raises(Refused, match="NaN"):
        engine.run(card, [llamas[0], str(tmp_path / "nan")], {}, out=tmp_path / "out", speak=False)


def test_overwrite_takes_the_place_of_the_old_output(llamas: list[str], tmp_path: Path) -> None:
    run("ties", llamas, tmp_path / "out", "--shard-size", "9KB")
    run("linear", llamas, tmp_path / "out", "--overwrite")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


# -- aftercare --------------------------------------------------------------------------------------------------


def test_a_config_that_does_not_fit_fails_the_proof(llamas: list[str], tmp_path: Path) -> None:
    """The output is there, marked failed, and the exit code is 4: no merge succeeds and talks garbage."""
    file = Path(llamas[0]) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 99, "num_hidden_layers": 3}))
    words = [*llamas[1:], "--base", llamas[0], "--out", str(tmp_path / "out"), "--no-speak"]
    nett("merge", "ties", *words).failed(4, "was written", "config vocab_size", "config says 99", "has 64")
    receipt = json.loads((tmp_path / "out" / "nett.json").read_text())
    failed = {c["name"] for c in receipt["checks"] if not c["ok"]}
    assert receipt["proof"] == "failed" and failed == {"config vocab_size", "config num_hidden_layers"}


def test_more_tokens_than_embedding_rows(llamas: list[str], tmp_path: Path) -> None:
    file = Path(llamas[0]) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append({"id": 64, "content": "<new>"})
    file.write_text(json.dumps(content))
    words = [*llamas[1:], "--base", llamas[0], "--out", str(tmp_path / "out"), "--no-speak"]
    nett("merge", "ties", *words).failed(4, "tokenizer", "65 tokens, 64 embedding rows")


def row(perplexity: float | None = 5.0, **more: Any) -> dict[str, Any]:
    return {"model": "m", "perplexity": perplexity, "says": "so", **more}


@pytest.mark.parametrize(
    ("rows", "ok"),
    [
        ([row(5.0), row(6.0), row(4.0)], True),
        ([row(59.0), row(6.0), row(4.0)], True),
        ([row(61.0), row(6.0), row(4.0)], False),  # more than ten times the worst input
        ([row(float("nan")), row(6.0)], False),
        ([row(5.0)], True),
        ([row(None, error="KeyError: no"), row(6.0)], False),
        ([row(5.0, problem="missing ['lm_head']"), row(6.0)], False),
    ],
)
def test_judging_what_was_said(rows: list[dict[str, Any]], ok: bool) -> None:
    assert all(c["ok"] for c in aftercare.judge(rows)) == ok


def test_it_is_heard_speaking(llamas: list[str], tmp_path: Path) -> None:
    """The result and its inputs are loaded by transformers in a process of their own; perplexities beside it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    words = [*llamas[1:], "--base", llamas[0], "--out", str(tmp_path / "out")]
    said = nett("merge", "ties", *words).succeeded()
    receipt = json.loads((tmp_path / "out" / "nett.json").read_text())
    checks = {c["name"]: c for c in receipt["checks"]}
    assert checks["speaks"]["ok"] and "perplexity" in checks["speaks"]["detail"], said.err
    assert [q["model"] for q in receipt["quality"]] == ["merged", "base", "m1", "m2"]
    assert all(1 < q["perplexity"] < 1e4 for q in receipt["quality"])


def test_a_model_that_transformers_cannot_load_fails(llamas: list[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for path in llamas:  # a tensor fewer than the architecture has, in all three alike
        tensors = {n: a for n, a in read_tensors(Path(path)).items() if n != "model.norm.weight"}
        write_tensors(Path(path) / "model.safetensors", tensors, "BF16")
    words = [*llamas[1:], "--base", llamas[0], "--out", str(tmp_path / "out")]
    nett("merge", "ties", *words).failed(4, "'loads' failed", "model.norm.weight")


def test_where_it_cannot_be_heard_the_receipt_says_why(tmp_path: Path) -> None:
    for name in ("base", "m1"):
        write_tensors(tmp_path / name / "model.safetensors", {"w": np.ones(4)})
    nett(
        "merge", "ties", str(tmp_path / "m1"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "out")
    ).succeeded()
    checks = {c["name"]: c for c in json.loads((tmp_path / "out" / "nett.json").read_text())["checks"]}
    assert checks["speaks"]["detail"] == "not tried: the output has no config.json"


def test_proof_failed_is_raised_in_python_too(llamas: list[str], tmp_path: Path) -> None:
    file = Path(llamas[0]) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 31}))
    with pytest.raises(ProofFailed, match="hidden_size"):
        engine.run(find_card("ties"), llamas[1:], {}, base=Path(llamas[0]), out=tmp_path / "out", speak=False)
