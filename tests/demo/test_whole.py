"""The whole demo on a pico model of random weights, quantised to a GGUF file: every step, every command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from demo.console import QUIET, DemoFailed
from demo.run import Setting, run
from demo.tuning import Course

from nett.core.tiny import write_llama
from support.gguf_files import write_llama_gguf

pytest.importorskip("torch", reason="needs nett[models]")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COURSE = Course(steps=20, batch=4, length=32, rate=1e-2)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in QUIET.items():
        monkeypatch.setitem(os.environ, name, value)
    folder = write_llama(tmp_path / "pico", dtype="F32", hidden=64, inter=128)
    return write_llama_gguf(tmp_path / "pico.gguf", folder, "Q8_0")


def test_every_step_to_the_report(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    story = run(Setting(model, out, COURSE, passages=8, length=32, needed=0))
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(out / "report.html") and (out / "report.html").is_file()
    assert [r.command.split()[1] for r in story.ran] == [
        "scan", "convert", "convert", "scan", "merge", "merge", "restore", "restore", *["verify"] * 6
    ]  # fmt: skip
    assert story.compared is not None and story.compared.difference == 0
    for text in story.names:
        assert story.figures[text, text].perplexity < story.figures["base", text].perplexity
        assert story.figures["base", text].kl.max() == 0 < story.figures["ties", text].kl.min()
    assert {r["proof"] for r in story.receipts.values()} == {"kept"}
    assert len(json.loads((out / "figures.json").read_text())["quality"]) == 12


def test_a_fine_tune_that_learns_nothing_fails_it(model: Path, tmp_path: Path) -> None:
    course = Course(steps=2, batch=1, length=32, rate=1e-12)
    with pytest.raises(DemoFailed, match="a lower perplexity was expected"):
        run(Setting(model, tmp_path / "out", course, passages=4, length=32, needed=0))
    assert not (tmp_path / "out" / "report.html").exists()
