"""Experts that go together: planted pairs on a text, and the choice among counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.scan.coactive_experts import coactive_experts, together
from support.mixtures import rewrite, write_mixture
from support.scanning import parsed


def test_pairs_of_counts() -> None:
    both = np.array([[100, 57, 10, 3], [57, 60, 20, 1], [10, 20, 90, 12], [3, 1, 12, 12]])
    assert together(both, 200, 0.9, 1.5, 10) == [(1, 0), (3, 2)]  # 57 of 60, 12 of 12
    assert together(both, 200, 0.9, 1.5, 13) == [(1, 0)]
    assert together(both, 200, 0.96, 1.5, 10) == [(3, 2)]
    assert together(both, 200, 0.9, 2.0, 10) == [(3, 2)]  # 0.95 of what 100 of 200 choose anyway is 1.9 times
    chain = np.array([[10, 10, 10], [10, 20, 20], [10, 20, 30]])
    assert together(chain, 100, 0.9, 1.5, 1) == [(0, 1)]  # the one that another goes with stays


def test_a_planted_pair(tmp_path: Path) -> None:
    """A row of the router that is another's and a little longer: whoever chooses the other chooses it as well."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["sun", "road", "river", "dust", "air"], 900)))
    model = write_mixture(tmp_path / "model", experts=6)

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        rows = held["model.layers.0.block_sparse_moe.gate.weight"]
        rows[4] = 1.01 * rows[1]

    path = rewrite(model, tmp_path / "pair", change)
    said = coactive_experts([str(path)], text=str(text), samples=6, length=64, lift=1.2)
    (finding,) = [f for f in said.found if ".layers.0." in f.edge.target]
    pair = {finding.edge.target.rpartition(".")[2], finding.edge.sources[0].rpartition(".")[2]}
    assert pair == {"1", "4"} and finding.edge.error is None and finding.edge.bytes_freed == 3 * 16 * 32 * 4
    assert parsed(str(finding.edge.command)).params["text"] == str(text)
    assert coactive_experts([str(path)]).found == ()


def test_a_dense_model_is_passed_over(tmp_path: Path) -> None:
    from nett.core.tiny import write_llama

    text = tmp_path / "text.txt"
    text.write_text("sun " * 99)
    said = coactive_experts([str(write_llama(tmp_path / "dense"))], text=str(text))
    assert said.found == () and said.figures == {}


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_shares_out_of_range_are_refused(share: float, tmp_path: Path) -> None:
    from nett.core.errors import UsageError
    from nett.scan.engine import run_probes

    with pytest.raises(UsageError, match="0 < share <= 1"):
        run_probes({"coactive_experts": {"share": share}}, [str(tmp_path)])
