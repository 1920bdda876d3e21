"""``nett scan`` without a path, ``nett scan --disk DIR``: what is printed, ``--json``, ``--html``, usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from nett.core.edge import SCHEMA
from nett.scan.disk.engine import run_disk
from nett.scan.disk.words import MEANING
from support import caches
from support.cli import nett
from support.scanning import parsed


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home: two equal models where he works, one in the hub's cache."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    base = caches.llama(tmp_path / "work" / "base")
    caches.copy(base, tmp_path / "work" / "copy")
    caches.hub_repository(tmp_path / ".cache/huggingface/hub", "a--b", {"model.safetensors": caches.weights(1)})
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_the_headline_and_what_it_says_it_rests_on(disk: Path) -> None:
    work = disk / "work"
    lines = nett("scan").succeeded().out.splitlines()
    link = f"`nett store link {work / 'base'} {work / 'copy'}`"
    assert lines[0].startswith("3.07 MB in 3 models; about ") and f" of it now, at no risk: {link} (" in lines[0]
    assert lines[1].startswith("An estimate from headers and sampled pages of every tensor: ")
    assert lines[1].endswith("with 95 % confidence. --exact reads every byte.")
    exact = nett("scan", "--exact").succeeded().out.splitlines()
    assert " provably free; 1.02 MB of it now, at no risk: " in exact[0] and exact[1] == "Every byte was read."
    assert "not there" not in "\n".join(lines) and str(disk / ".cache/huggingface/hub") in "\n".join(lines)


def test_json_and_page_say_the_same(disk: Path, tmp_path: Path) -> None:
    nett("scan", "--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")).succeeded()
    record, found = json.loads((tmp_path / "s.json").read_text()), run_disk()
    assert record["edges"] == [f.edge.as_json() for f in found.found] and record["edges"]
    for edge, (low, high) in zip(record["edges"], record["intervals"], strict=True):
        jsonschema.validate(edge, SCHEMA)
        assert low <= edge["bytes_freed"] <= high and edge["kind"] in MEANING
        assert edge["command"].startswith("nett store ")
        parsed(edge["command"].replace("…", "x"))
    assert record["bytes_freed"] == found.free.value and record["exact"] is False and record["models"] == 3
    low, high = record["bytes_freed_interval"]
    assert low <= record["bytes_freed"] <= high <= record["bytes_allocated"]
    assert {p["kind"] for p in record["places"]} >= {
        "Hugging Face",
        "Ollama",
        "LM Studio",
        "torch hub",
        "working folder",
    }
    page = (tmp_path / "s.html").read_text()
    assert "3 models" in page and "equal files" in page and "<svg" in page


def test_nothing_found_says_where_it_looked(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare" / "x").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "bare"))
    monkeypatch.chdir(tmp_path / "bare" / "x")
    said = nett("scan").succeeded().out
    assert said.startswith("No models were found.")
    for place in (".cache/huggingface/hub", ".ollama/models", ".lmstudio/models", ".cache/torch/hub", "x"):
        assert str(tmp_path / "bare" / place) in said
    assert "nett scan --disk DIR" in said


def test_words_that_are_off(disk: Path) -> None:
    nett("scan", "--disk").failed(2, "--disk needs a folder")
    nett("scan", "--only", "header").failed(2, "--only is for checkpoints that are named")
    nett("scan", "--base", "base").failed(2, "--base is for checkpoints that are named")
    nett("scan", "--disk", "nowhere").failed(3, "there is no such folder", "nowhere")
    nett("scan", "header").failed(2)  # a probe needs its paths
    assert "checkpoint" in nett("scan", "base", "--only", "header").succeeded().out.splitlines()[0]  # as ever


def test_neither_torch_nor_the_extras_are_imported(disk: Path) -> None:
    code = (
        "import sys; from nett.scan.disk.engine import run_disk; run_disk(exact=True);"
        "bad = {'torch', 'transformers', 'gguf', 'zstandard', 'openzl'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
