"""All probes together: the frozen record, the ranking, what is counted once, threads, memory, odd input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import nett as package
from nett.core import sweep
from nett.core.errors import Refused, UsageError
from nett.scan import engine
from support.cli import nett
from support.forge import forge
from support.scanning import as_stored, in_every_container, model, parsed, tuned, write, write_pickle
from support.tensors import write_raw, write_tensors

SCHEMA = json.loads((Path(package.__file__).parents[2] / "docs" / "edge.schema.json").read_text())
KEYS = ["kind", "target", "sources", "method", "bytes_freed", "seconds", "error", "guarantee", "command"]


@pytest.fixture
def redundant(tmp_path: Path) -> list[str]:
    """A base of bfloat16 values in float32 with a tied head stored twice and a repeated layer; two fine-tunes."""
    base = as_stored(model(), "BF16")
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    for role in ("mlp", "norm"):
        base[f"model.layers.1.{role}.weight"] = base[f"model.layers.0.{role}.weight"]
    rng = np.random.default_rng(0)
    base["thin"] = as_stored({"w": rng.normal(size=(64, 2)) @ rng.normal(size=(2, 64))}, "BF16")["w"]
    others = [tuned(base, seed, share=0.1) for seed in (1, 2)]
    paths = [write(tmp_path / n, m) for n, m in zip(("base", "a", "b"), (base, *others), strict=True)]
    words = {"model": {"vocab": {f"t{i}": i for i in range(40)}}}
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(words))
    return paths


def answer(found: engine.Scan) -> dict[str, Any]:
    """All but times, and the bytes that a probe was shown before it had seen enough."""
    record = found.as_json()
    record.pop("seconds")
    record["probes"] = [{k: p[k] for k in ("name", "figures")} for p in record["probes"]]
    return record


def test_the_record_is_the_published_one(redundant: list[str]) -> None:
    found = engine.run(redundant).as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    kinds = {e["kind"] for e in found["edges"]}
    assert kinds == {
        "duplicate_tensor", "narrower_dtype", "sparse_delta", "multi_task_vector", "low_rank", "near_equal_layer",
        "unused_embedding_rows", "byte_planes",
    }  # fmt: skip
    for edge in found["edges"]:
        assert list(edge) == KEYS
        jsonschema.validate(edge, SCHEMA)
        assert edge["target"].partition("::")[0] in redundant
        assert all(s.partition("::")[0] in redundant for s in edge["sources"])
        assert edge["guarantee"] != "exact" or edge["error"] == 0
    assert [p["name"] for p in found["probes"]] == [c.name for c in engine.chosen(())]
    assert found["nett"] == package.__version__ and found["bytes"] == sum(a["bytes"] for a in found["assets"])


def test_ranked_by_what_they_free(redundant: list[str]) -> None:
    strength = {"exact": 0, "bounded": 1, "measured": 2}
    found = [(-e.bytes_freed, strength[e.guarantee], e.kind, e.target) for e in engine.run(redundant).edges]
    assert found == sorted(found) and len(found) > 10


def test_commands_are_commands(redundant: list[str]) -> None:
    """Each is parsed by the command line itself; what it names as method is the method it calls."""
    commands = {(e.command, e.method) for e in engine.run(redundant).edges if e.command}
    assert {method for _, method in commands} == {"convert", "merge/tall_masks", "store/add"}
    for command, method in commands:
        context = parsed(command)
        words = context.command_path.replace("-", "_").split()
        assert words == ["nett", *str(method).split("/")]


@pytest.mark.parametrize("unit", [33, sweep.UNIT])
def test_threads_do_not_show(redundant: list[str], unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "UNIT", unit)
    monkeypatch.setattr(sweep, "JOB", 4 * unit * 10)
    one = answer(engine.run(redundant, threads=1))
    assert answer(engine.run(redundant, threads=4)) == one


def test_no_byte_is_freed_twice(tmp_path: Path) -> None:
    """A tensor that is a duplicate and fits a narrower type: the copy goes, the other is narrowed."""
    values = as_stored({"w": model()["lm_head.weight"]}, "BF16")["w"]
    found = engine.run([write(tmp_path / "m", {"a": values, "b": values})])
    assert found.lossless == values.nbytes + values.nbytes // 2
    assert sum(e.bytes_freed for e in found.edges if e.guarantee == "exact") == 2 * values.nbytes
    assert found.most == found.lossless and found.error == 0.0


def test_measured_errors_of_zero_are_not_called_lossless(tmp_path: Path) -> None:
    """Rank two exactly, as far as float64 can tell; two factors do not give every bit back."""
    rng = np.random.default_rng(0)
    thin = (rng.integers(-4, 5, (64, 2)) @ rng.integers(-4, 5, (2, 64)) * 1.001).astype(np.float32)
    found = engine.run([write(tmp_path / "m", {"w": thin})], only=["effective_rank"])
    assert [e.kind for e in found.edges] == ["low_rank"]
    assert found.lossless == 0 and found.most == 64 * 64 * 4 - 2 * 128 * 4


def test_nothing_in_models_without_redundancy(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(i), model(i)) for i in range(3)]
    found = engine.run(paths)
    assert found.edges == () and (found.lossless, found.most, found.error) == (0, 0, 0.0)


def test_containers_do_not_show(tmp_path: Path) -> None:
    base = as_stored(model(), "F16") | {
        "model.layers.1.mlp.weight": as_stored(model(), "F16")["model.layers.0.mlp.weight"]
    }
    said = []
    for path in in_every_container(tmp_path, base).values():
        found = engine.run([path], only=["duplicate_tensors", "narrower-dtype", "near_equal_layers", "effective_rank"])
        said.append(sorted((e.kind, e.target.partition("::")[2], e.bytes_freed, e.error) for e in found.edges))
    assert said[0] and all(one == said[0] for one in said)


def test_only_some_probes(redundant: list[str]) -> None:
    found = engine.run(redundant, only=["narrower-dtype", "header"])
    assert {p.name for p in found.probes} == {"narrower_dtype", "header"}
    assert {e.kind for e in found.edges} == {"narrower_dtype"}
    with pytest.raises(UsageError, match=r"'naro_dtype'.*Did you mean 'narrower_dtype'"):
        engine.run(redundant, only=["naro_dtype"])


def test_parameters_of_a_probe(redundant: list[str]) -> None:
    found = engine.run_probes({"effective_rank": {"energy": 0.5}}, redundant[:1])
    (run,) = found.probes
    assert all("rank_0.5" in f for f in run.findings.figures["by_matrix"].values())
    with pytest.raises(UsageError, match=r"energy = 2.*out of range"):
        engine.run_probes({"effective_rank": {"energy": 2.0}}, redundant)


def test_the_base_is_the_first_asset(redundant: list[str]) -> None:
    found = engine.run(redundant[1:], base=redundant[0], only=["closeness"])
    assert found.probes[0].findings.figures["base"] == redundant[0]
    assert [a["path"] for a in found.assets] == redundant


def test_odd_tensors(tmp_path: Path) -> None:
    """Empty, of no dimension, not finite, integers, booleans, one element, names with any characters."""
    tensors = {
        "scalar": np.float32(2).reshape(()), "none": np.zeros((0, 3), np.float32), "nan": np.full((8, 8), np.nan, np.float32),
        "inf": np.full((8, 8), np.inf, np.float32), "huge": np.full((8, 8), 3e38, np.float32), "counts": np.arange(12).reshape(3, 4),
        "flags": np.array([True, False]), "one": np.ones(1, np.float32), "a::b <script> % ü": np.ones((2, 2), np.float32),
        "layers.0.w": np.zeros((4, 4), np.float32), "layers.1.w": np.zeros((4, 4), np.float32),
    }  # fmt: skip
    path = write(tmp_path / "m", tensors)
    other = write(tmp_path / "n", tensors)
    record = engine.run([path, other]).as_json()
    for edge in record["edges"]:
        jsonschema.validate(edge, SCHEMA)
    json.dumps(record, allow_nan=False)
    wide = {n: a.astype(np.float64) * 1e250 if n == "huge" else a for n, a in tensors.items()}
    paths = [write(tmp_path / n, wide, "F64") for n in ("o", "p")]
    json.dumps(engine.run(paths).as_json(), allow_nan=False)


def test_one_tensor_file(tmp_path: Path) -> None:
    path = str(write_tensors(tmp_path / "one.safetensors", {"w": model()["lm_head.weight"]}))
    found = engine.run([path])
    assert found.edges == () and found.assets[0]["tensors"] == 1


def test_an_empty_checkpoint(tmp_path: Path) -> None:
    found = engine.run([write(tmp_path / "m", {}), write(tmp_path / "n", {})])
    assert found.edges == () and found.nbytes == 0


def test_folders_of_checkpoints(tmp_path: Path) -> None:
    """Everything below is found, each once; training's own pickles and hidden folders are not checkpoints."""
    write(tmp_path / "zoo" / "a", model(1))
    (tmp_path / "zoo" / "a" / "config.json").write_text("{}")
    write(tmp_path / "zoo" / "deep" / "b", model(2))
    write_tensors(tmp_path / "zoo" / "loose1.safetensors", model(3))
    write_tensors(tmp_path / "zoo" / "loose2.safetensors", model(4))
    write_pickle(tmp_path / "zoo" / "training_args.bin", model(5))
    write(tmp_path / "zoo" / ".cache", model(6))
    found = engine.run([str(tmp_path / "zoo"), str(tmp_path / "zoo" / "a")], only=["header"])
    zoo = tmp_path / "zoo"
    assert {a["path"] for a in found.assets} == {
        str(zoo / "a"), str(zoo / "deep" / "b"), str(zoo / "loose1.safetensors"), str(zoo / "loose2.safetensors"),
    }  # fmt: skip


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "zoo" / "good", model())
    write_raw(tmp_path / "zoo" / "bad" / "model.safetensors", b"{", b"", length=1 << 40)
    found = engine.run([str(tmp_path / "zoo")], only=["header"])
    assert [a["path"] for a in found.assets] == [good]
    said = capsys.readouterr().err
    assert "left out" in said and "bad" in said


@pytest.mark.parametrize("what", ["nothing", "text", "empty", "both"])
def test_paths_that_are_no_checkpoints(tmp_path: Path, what: str) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    good = write(tmp_path / "good", model())
    wanted = {
        "nothing": ([str(tmp_path / "nowhere")], "no such file or folder"),
        "text": ([str(text)], "notes.txt"),
        "empty": ([str(tmp_path / "empty")], "holds no checkpoint"),
        "both": ([good, str(tmp_path / "nowhere")], "no such file or folder"),  # a typo is not passed over
    }
    paths, message = wanted[what]
    with pytest.raises(Refused, match=message):
        engine.run(paths)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A checkpoint four times as large takes no more memory (its pages of the file cache are not ours)."""
    used = []
    for name, rows in (("small", 2048), ("large", 8192)):
        rng = np.random.default_rng(0)
        shape = (rows, 128)
        tensors = {f"layers.{i}.w": rng.standard_normal(shape, np.float32) for i in range(10)}
        tensors["layers.9.w"] = tensors["layers.0.w"]
        base = write(tmp_path / name / "base", tensors)
        tensors["layers.1.w"] = tensors["layers.1.w"] + np.float32(1)
        other = write(tmp_path / name / "tuned", tensors)
        used.append(forge().run("support.work:scan_memory", paths=[base, other], threads=2))
    print(f"peaks: {[round(u / 1e6) for u in used]} MB for 21 and 84 MB of checkpoints")
    assert max(used) < 120e6 and used[1] < used[0] + 48e6


def test_torch_is_not_needed(redundant: list[str]) -> None:
    """Neither imported nor missed, with every probe over safetensors and a page written."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from nett.cli.app import run\n"
        f"code = run(['scan', *{redundant!r}, '--html', {str(Path(redundant[0]).parent / 'page.html')!r}])\n"
        "sys.exit(code or ('torch' in str(sys.modules['torch'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "duplicate_tensor" in done.stdout


def test_inputs_are_not_written_to(redundant: list[str]) -> None:
    files = sorted(p for r in redundant for p in Path(r).rglob("*"))
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in files]
    nett("scan", *redundant).succeeded()
    assert sorted(p for r in redundant for p in Path(r).rglob("*")) == files
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in files] == before
