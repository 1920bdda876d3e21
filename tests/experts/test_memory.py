"""What a run holds in memory is bounded by one layer, whatever the number of layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.mixtures import write_mixture


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reap", "mc_smoe"])
def test_four_times_the_layers_take_no_more_than_two_layers_more(method: str, tmp_path: Path) -> None:
    """Two layers of 25 MB of experts, then eight: the peak of a process of its own grows by less than two of them (measured:
    10 MB for reap, 31 for mc_smoe), where the model grows by six."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, np.random.default_rng(0).integers(1 << 40, size=300))))
    peaks, layer = [], 16 * 3 * 512 * 256 * 4
    for layers in (2, 8):
        sizes = {"num_hidden_layers": layers, "hidden_size": 256, "width": 512, "experts": 16}
        model, out = write_mixture(tmp_path / f"model{layers}", **sizes), tmp_path / f"out{layers}"
        options = [
            "--text",
            str(text),
            "--out",
            str(out),
            "--length",
            "32",
            "--samples",
            "8",
            "--threads",
            "1",
            "--quiet",
        ]
        subprocess.run([sys.executable, "-m", "nett", "experts", method, str(model), *options], check=True)
        peaks.append(json.loads((out / "nett.json").read_text())["peak_memory_bytes"])
    assert peaks[1] - peaks[0] < 2 * layer
