"""frequency, random and reap: worked by hand, and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nett.core.errors import Refused, UsageError
from nett.experts import frequency, random, reap
from support.cli import nett
from support.mixtures import Paper, tensors


def test_by_hand() -> None:
    """Expert 1 is chosen most, expert 2 adds most where it is chosen, expert 3 never is."""
    counts = [torch.tensor([10, 50, 5, 0])]
    contribution = [torch.tensor([3.0, 1.0, 9.0, 0.0])]
    assert [k.experts for k in frequency([Paper(4)], counts, unseen="drop")] == [[0, 1]]
    assert [k.experts for k in reap([Paper(4)], contribution, counts, unseen="drop")] == [[0, 2]]
    assert [k.experts for k in reap([Paper(4)], contribution, counts, keep=0.75)] == [[0, 2, 3]]


def test_chance_is_even() -> None:
    """Over 600 seeds each of four experts stays about half of the time: three deviations of a fair coin are 0.061."""
    kept = np.zeros(4)
    for seed in range(600):
        (one,) = random([Paper(4)], seed=seed)
        kept[list(one.experts)] += 1
    assert np.abs(kept / 600 - 0.5).max() < 0.062


def test_command(mixtral: Path, tmp_path: Path) -> None:
    words = tmp_path / "text.txt"
    words.write_text(" ".join(map(str, np.random.default_rng(0).integers(1 << 40, size=300))))
    out = tmp_path / "out"
    options = ("--keep", "0.5", "--text", str(words), "--out", str(out), "--length", "32")
    assert "proof kept" in nett("experts", "reap", str(mixtral), *options).succeeded().out
    receipt = json.loads((out / "nett.json").read_text())
    for line in receipt["tensors"]:
        held, before = tensors(out), tensors(mixtral)
        for new, old in enumerate(line["kept"]):
            for role in ("w1", "w2", "w3"):
                names = (f"{line['name']}.experts.{e}.{role}.weight" for e in (new, old))
                a, b = next(names), next(names)
                assert torch.equal(held[a], before[b])
        assert torch.equal(held[f"{line['name']}.gate.weight"], before[f"{line['name']}.gate.weight"][line["kept"]])
    nett("verify", str(out)).succeeded()
    nett("restore", str(out), "--out", str(tmp_path / "again")).failed(3, "cannot be undone", str(mixtral))


def test_refusals(mixtral: Path, tmp_path: Path) -> None:
    from nett.core.cards import find_card
    from nett.experts import engine

    with pytest.raises(UsageError, match="needs a text"):
        engine.run(find_card("experts/reap"), [str(mixtral)], {}, out=tmp_path / "out")
    with pytest.raises(Refused, match=r"keep = 0.25 leaves 1 of 4"):
        engine.run(find_card("experts/random"), [str(mixtral)], {"keep": 0.25}, out=tmp_path / "out")
    with pytest.raises(UsageError, match="takes one model"):
        engine.run(find_card("experts/random"), [], {}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
