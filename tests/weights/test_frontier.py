"""Points of every method on one model, and which of them nothing beats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nett
from nett.core.errors import Refused, UsageError
from nett.core.receipt import read_receipt


def test_points_are_the_receipts(llama: Path, text: Path, other: Path, tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text(json.dumps([{"name": "theirs", "bytes": 10**9, "perplexity": 1e9}]))
    told = nett.weights.frontier(
        [str(llama)], eval=other, calibration=text, methods="rtn,gptq,magnitude", bits="3,8", sparsity="0.5,2:4",
        peers=tmp_path / "peers.json", length=24, samples=8, threads=1, work=tmp_path / "work",
        html=tmp_path / "page.html", json=tmp_path / "points.json",
    )  # fmt: skip
    names = [p["name"] for p in told["points"]]
    assert sorted(names) == [
        "gptq bits=3", "gptq bits=8", "magnitude pattern=2:4", "magnitude sparsity=0.5", "original", "rtn bits=3", "rtn bits=8",
    ]  # fmt: skip
    receipt = read_receipt(tmp_path / "work" / "gptq-bits-3")
    point = next(p for p in told["points"] if p["name"] == "gptq bits=3")
    assert point["kl"] == receipt["figures"]["judged"]["kl"]["mean"]
    assert point["bytes"] == (tmp_path / "work" / "gptq-bits-3" / "model.safetensors").stat().st_size
    for p in told["points"]:
        better = [q for q in told["points"] if q["bytes"] <= p["bytes"] and q["kl"] < p["kl"]]
        smaller = [q for q in told["points"] if q["bytes"] < p["bytes"] and q["kl"] <= p["kl"]]
        assert p["frontier"] is not bool(better or smaller)
    assert next(p for p in told["points"] if p["name"] == "original")["frontier"]
    assert set(told["peers"][0]["beaten_by"]) == set(names) - {"original"}
    assert json.loads((tmp_path / "points.json").read_text())["points"] == told["points"]
    again = nett.weights.frontier(
        [str(llama)], eval=other, calibration=text, methods="rtn,gptq,magnitude", bits="3,8", sparsity="0.5,2:4",
        length=24, samples=8, threads=1, work=tmp_path / "work",
    )  # fmt: skip
    assert [p["kl"] for p in again["points"]] == [p["kl"] for p in told["points"]]


def test_what_cannot_be_tried_is_said(llama: Path, text: Path, other: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps([{"method": "rtn", "group": 48}, {"method": "gptq"}, {"method": "rtn"}]))
    told = nett.weights.frontier([str(llama)], eval=other, settings=settings, length=24, threads=1)
    assert [p["name"] for p in told["points"]] == ["original", "rtn"] and len(told["refused"]) == 2
    assert "groups of 48" in told["refused"][0] and "--calibration" in told["refused"][1]
    settings.write_text(json.dumps([{"method": "rtn", "group": 48}]))
    with pytest.raises(Refused, match="no setting could be tried"):
        nett.weights.frontier([str(llama)], eval=other, settings=settings, length=24, threads=1)
    settings.write_text("{}")
    with pytest.raises(UsageError, match="expected a list"):
        nett.weights.frontier([str(llama)], eval=other, settings=settings)
    with pytest.raises(UsageError, match="--eval"):
        nett.weights.frontier([str(llama)])
    with pytest.raises(UsageError, match="no method is called"):
        nett.weights.frontier([str(llama)], eval=other, methods="rtm")
