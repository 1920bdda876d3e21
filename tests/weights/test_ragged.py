"""A model whose blocks differ in width: written, judged, loaded by nett, refused by a stock loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import nett
from nett.core.cards import find_card
from nett.weights import engine


def test_only_nett_loads_it(llama: Path, text: Path, tmp_path: Path) -> None:
    parameters = {"ratio": 0.4, "steps": 6, "every": 2, "batch": 2, "spare_first": 1, "uniform": False}
    out = tmp_path / "out"
    receipt = engine.run(
        find_card("weights/loraprune"), [str(llama)], parameters, out=out, calibration=text, length=24, samples=24, threads=1
    )  # fmt: skip
    assert receipt["proof"] == "kept" and any("stock loaders refuse" in n for n in receipt["notes"])
    assert all(c["ok"] for c in engine.verify(out, receipt))
    model = nett.load(out, as_model=True)
    widths = [layer.mlp.up_proj.weight.shape[0] for layer in model.model.layers]
    assert widths[0] == 96 and min(widths[1:]) < 96
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.arange(3, 20)[None]).logits).all())
    assert json.loads((out / "config.json").read_text())["nett_widths"] == "by block"
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(out)
