"""What claims about smaller language models rest on, and both claims run through on a toy."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nett
from nett.core.errors import NettError
from support.language_models import language_model, token_windows

pytestmark = pytest.mark.claims
ROOT = Path(nett.__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


def module(name: str) -> ModuleType:
    return importlib.import_module(f"claims.{name}")


def test_a_gap_joins_the_spread_of_seeds_with_that_of_windows() -> None:
    random = np.random.default_rng(0)
    a = [random.normal(2, 0.1, 50) for _ in range(3)]
    b = [x + 0.03 + random.normal(0, 0.02, 50) for x in a]
    found = module("stories").gap(a, b)
    means = [100 * (y - x).mean() for x, y in zip(a, b, strict=True)]
    windows = np.mean([100 * (y - x).std(ddof=1) / np.sqrt(50) for x, y in zip(a, b, strict=True)])
    assert found.mean == pytest.approx(np.mean(means))
    assert found.error == pytest.approx(np.hypot(np.std(means, ddof=1) / np.sqrt(3), windows))
    assert found.above


def test_jobs_have_a_process_each_and_their_errors_come_here() -> None:
    side_by_side = module("stories").side_by_side
    here, there, again = os.getpid(), *side_by_side([os.getpid, os.getpid])
    assert len({here, there, again}) == 3
    with pytest.raises(NettError, match="ZeroDivisionError"):
        side_by_side([os.getpid, functools.partial(divmod, 1, 0)])


def toy(name: str) -> Any:
    model = language_model("llama", num_hidden_layers=5)
    windows = {part: token_windows(12, seed=i) for i, part in enumerate(("train", "val", "test"))}
    return module("stories").Reader(name, "5 blocks", model, windows)


@pytest.mark.parametrize("paper", ["P07", "P64"])
def test_a_claim_runs_through_and_can_fail(paper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, stories = module(paper), module("stories")
    monkeypatch.setattr(stories, "lacking", lambda: None)
    monkeypatch.setattr(stories, "stories", functools.partial(toy, "one"))
    monkeypatch.setattr(stories, "plays", functools.partial(toy, "other"))
    if paper == "P07":
        monkeypatch.setattr(claim, "CURE", {"cure_steps": 2, "batch": 4})
        monkeypatch.setattr(claim, "GATES", {"gate_steps": 2})
    else:
        monkeypatch.setattr(claim, "TRAINING", {"steps": 4, "batch": 4, "every": 2})
    said: list[str] = []
    result = claim.run((0, 1, 2), said.append)
    assert result.beds == ["one", "other"]
    assert len(result.checks) == (7 if paper == "P07" else 5)
    assert {p.method for p in result.frontier} == {"the model before", *claim.METHODS}
    assert all(np.isfinite(f.value) for f in result.figures)
    assert result.verdict == "fails" and result.because  # random weights have nothing to lose
