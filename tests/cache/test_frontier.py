"""Every policy on one bed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nett
from nett.core.errors import Refused, UsageError
from nett.core.tiny import write_llama


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("frontier")
    words = np.random.default_rng(0).choice(["sun", "road", "river", "dust"], 800)
    (folder / "text.txt").write_text(" ".join(words))
    return write_llama(folder / "llama", layers=2, hidden=32, dtype="F32"), folder / "text.txt"


def test_points(bed: tuple[Path, Path], tmp_path: Path) -> None:
    model, text = bed
    told = nett.cache.frontier(
        [str(model)], text=text, budgets="0.5,8tok", bits="4", samples=3, context=24, follow=6, threads=1,
        html=tmp_path / "page.html", json=tmp_path / "points.json",
    )  # fmt: skip
    names = {p["name"]: p for p in told["points"]}
    assert {
        "full",
        "window budget=0.5",
        "h2o budget=8tok",
        "kvmerger budget=0.5",
        "ems budget=8tok",
        "kivi bits=4",
    } <= names.keys()
    assert (
        names["full"]["kl"]["mean"] == pytest.approx(0, abs=1e-7)
        and names["full"]["share"] == 1.0
        and names["full"]["frontier"]
    )
    assert names["window budget=8tok"]["share"] < names["window budget=0.5"]["share"] < 0.6
    for p in told["points"]:
        beaten = any(
            q["bytes"] <= p["bytes"] and q["kl"]["mean"] <= p["kl"]["mean"]
            and (q["bytes"] < p["bytes"] or q["kl"]["mean"] < p["kl"]["mean"])
            for q in told["points"]
        )  # fmt: skip
        assert p["frontier"] is not beaten
    assert (tmp_path / "page.html").stat().st_size > 5000 and (tmp_path / "points.json").is_file()
    assert any("kvmerger" in line for line in told["say"])


def test_bad_input(bed: tuple[Path, Path]) -> None:
    model, text = bed
    with pytest.raises(UsageError, match="--text"):
        nett.cache.frontier([str(model)])
    with pytest.raises(UsageError, match="no method is called"):
        nett.cache.frontier([str(model)], text=text, policies="h20")
    with pytest.raises(UsageError, match="is no policy"):
        nett.cache.frontier([str(model)], text=text, policies="frontier")
    with pytest.raises(UsageError, match="budget ="):
        nett.cache.frontier([str(model)], text=text, policies="h2o", budgets="0.5,much")
    with pytest.raises(Refused, match="128 positions"):
        nett.cache.frontier([str(model)], text=text, context=120, follow=60)
