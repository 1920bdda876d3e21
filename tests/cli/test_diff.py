"""``nett diff A B``: table, JSON, page, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nett.core.diff_page import HEADERS
from support.cli import nett, nett_process
from support.scanning import model, tuned, write


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    other = tuned(model(), 1, size=0.5)
    other["model.norm.weight"] = model()["model.norm.weight"]
    return [write(tmp_path / "a", model()), write(tmp_path / "b", other)]


def test_table_tells_how_far_rank_signs_and_bytes(pair: list[str], tmp_path: Path) -> None:
    said = nett("diff", *pair, "--json", str(tmp_path / "d.json")).succeeded().out
    record = json.loads((tmp_path / "d.json").read_text())
    assert (record["a"], record["b"]) == tuple(pair)
    lines = said.splitlines()
    assert lines[0].startswith("Of 7 tensors 6 moved, 1 the same. Relative change")
    for header in HEADERS:
        assert header in lines[2]
    moved = [t for t in record["tensors"] if t["status"] != "same"]
    for line, row in zip(lines[3:], moved, strict=False):
        rank = "-" if row["rank_99"] is None else str(row["rank_99"])
        assert line.split() == [
            row["name"], "moved", f"{row['relative_l2']:.4g}", f"{row['max_abs']:.4g}", f"{row['density']:.4g}", rank,
            str(row["sign_changes"]), f"{row['b']['bytes']:,}",
        ]  # fmt: skip
    for layer in record["layers"]:
        (line,) = [text for text in lines if text.split()[:1] == [layer["layer"]]]
        assert f"{layer['relative_l2']:.4g}" in line and f"{layer['bytes']:,}" in line
    (edge,) = record["edges"]
    assert f"by a sparse delta: {edge['bytes_freed']:,} of {record['bytes_b']:,} bytes less, without loss" in lines[-1]


def test_page_has_the_pictures(pair: list[str], tmp_path: Path) -> None:
    page = tmp_path / "d.html"
    nett("diff", *pair, "--html", str(page)).succeeded()
    html = page.read_text()
    for title in ("Relative change of each layer", "Relative change of each tensor", "Bytes of the tensors"):
        assert title in html
    assert html.count("<svg") == 3
    for name in model():
        assert name in html


def test_identical(pair: list[str], tmp_path: Path) -> None:
    said = nett("diff", pair[0], pair[0], "--json", str(tmp_path / "d.json")).succeeded().out
    assert "bit for bit" in said and len(said.splitlines()) == 1
    assert json.loads((tmp_path / "d.json").read_text())["identical"] is True


def test_shapes_and_names_that_differ(pair: list[str], tmp_path: Path) -> None:
    other = {n: a for n, a in model().items() if "norm" not in n} | {
        "lm_head.weight": np.ones((3, 16), np.float32),
        "x": np.ones(2, np.float32),
    }
    said = nett("diff", pair[0], write(tmp_path / "c", other), "--html", str(tmp_path / "d.html")).succeeded().out
    assert f"3 only in {pair[0]}" in said and "1 of another shape" in said and "1 only in" in said
    assert "reshaped" in said and "only_b" in said


def test_names_as_they_were_typed(tmp_path: Path) -> None:
    write(tmp_path / "one", model())
    write(tmp_path / "two", tuned(model(), 1))
    nett_process("diff", "one", "two", "--json", "d.json", cwd=tmp_path).succeeded()
    record = json.loads((tmp_path / "d.json").read_text())
    assert (record["a"], record["b"]) == ("one", "two")
    assert record["edges"][0]["target"] == "two" and record["edges"][0]["sources"] == ["one"]


def test_errors(pair: list[str], tmp_path: Path) -> None:
    nett("diff", pair[0]).failed(2, "Missing argument")
    nett("diff", pair[0], str(tmp_path / "nowhere")).failed(3, "nowhere", "no such file or folder")
    (tmp_path / "notes.txt").write_text("hello")
    nett("diff", str(tmp_path / "notes.txt"), pair[0]).failed(3, "notes.txt")
