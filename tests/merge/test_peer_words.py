"""What mergekit's users type: ``nett merge RECIPE DIR`` and mergekit's options, none of them taken in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.cli import nett
from support.recipes import write_family, write_recipe

STEPS = """\
name: first
merge_method: passthrough
models: [{model: a}]
---
merge_method: passthrough
models: [{model: first}]
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_family(tmp_path, count=1)
    write_recipe(Path("r.yml"), "merge_method: passthrough\nmodels: [{model: a}]\n")


def test_the_second_word_is_the_folder() -> None:
    said = nett(
        "merge", "r.yml", "out", "--cuda", "--lazy-unpickle", "--allow-crimes", "--no-copy-tokenizer", "--device", "cuda:0",
        "--lora-merge-cache", "x", "--out-shard-size", "1k", "-j", "1", "-v", "--no-speak",
    ).succeeded()  # fmt: skip
    for word in (
        "--cuda",
        "--lazy-unpickle",
        "--allow-crimes",
        "--no-copy-tokenizer",
        "--device",
        "--lora-merge-cache",
        "-v",
    ):
        assert f"{word} has no effect: " in said.err + said.out, word
    assert "compute" in said.err + said.out
    receipt = json.loads(Path("out/nett.json").read_text())
    assert receipt["options"]["shard_size"] == "1000" and len(list(Path("out").glob("model-*.safetensors"))) > 1


def test_mergekit_multis_words() -> None:
    write_recipe(Path("r.yml"), STEPS)
    nett("merge", "r.yml", "--out-path", "out", "-I", "steps", "--no-speak", "--quiet").succeeded()
    assert Path("steps/first/nett.json").is_file() and Path("out/nett.json").is_file()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["out", "--random-seed", "3"], ["--random-seed is not taken here", "seed: N"]),
        (["out", "--transformers-cache", "x"], ["--transformers-cache", "HF_HUB_CACHE"]),
        (["out", "--no-safe-serialization"], ["--no-safe-serialization", "safetensors only"]),
        (["out", "--out", "other"], ["--out other", "out", "two things"]),
        (
            ["out", "--out-shard-size", "5GB"],
            ["--out-shard-size '5GB' is not a size as mergekit has it", "--shard-size 5GB"],
        ),
        ([], ["the folder to write is missing", "--out DIR"]),
        (["out", "--cdua"], ["--cdua"]),
    ],
)
def test_refused(words: list[str], parts: list[str]) -> None:
    nett("merge", "r.yml", *words).failed(2, *parts)
    assert sorted(p.name for p in Path().iterdir()) == ["a", "base", "r.yml"]


def test_help_lists_our_options_only() -> None:
    said = nett("merge", "r.yml", "--help").succeeded().out
    assert "--keep-steps" in said and "--cuda" not in said
