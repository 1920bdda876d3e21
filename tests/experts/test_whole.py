"""Methods that see a whole mixture as a module: written under the file's names, experts apart again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nett.core.cards import find_card
from nett.core.expert_modules import mixtures
from nett.core.registry import Card
from nett.core.whole_model import Shrunk
from nett.experts import engine
from support.mixtures import logits_of, tensors, write_mixture


@pytest.mark.parametrize(
    ("family", "key"),
    [("mixtral", "intermediate_size"), ("qwen2_moe", "moe_intermediate_size"), ("granitemoe", "intermediate_size")],
)
def test_a_kernel_that_slims_the_module(family: str, key: str, tmp_path: Path) -> None:
    """The first 8 of 16 neurons of each expert stay, and one weight of attention moves: what lies in the file is that, and
    transformers computes with it what the module did."""
    model, ids, said = write_mixture(tmp_path / "model", family), torch.arange(3, 40)[None], []

    def kernel(module: Any, windows: Any) -> Shrunk:
        assert windows.shape == (14, 32) and not module.training
        for one in mixtures(module):
            both, down = one.experts.gate_up_proj.data, one.experts.down_proj.data
            one.experts.gate_up_proj = torch.nn.Parameter(torch.cat([both[:, :8], both[:, 16:24]], 1))
            one.experts.down_proj = torch.nn.Parameter(down[:, :, :8].contiguous())
            one.experts.intermediate_dim = 8
        setattr(module.config, key, 8)
        with torch.no_grad():
            next(p for n, p in module.named_parameters() if n.endswith("q_proj.weight"))[0, 0] = 3.0
            said.append(module(ids).logits)
        return Shrunk(module, {"neurons": 8})

    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, np.random.default_rng(0).integers(1 << 40, size=300))))
    card = dataclasses.replace(find_card("experts/random"), operands=("model", "windows"), parameters=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Card, "kernel", lambda self: kernel)
        receipt = engine.run(card, [str(model)], {}, out=tmp_path / "out", text=text, length=32, samples=16, threads=1)
    assert receipt["proof"] == "kept" and receipt["figures"]["neurons"] == 8
    before, after = tensors(model), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())[key] == 8
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    experts = [n for n in before if ".experts." in n or "put_linear" in n]
    assert set(changed) == {*experts, next(n for n in before if n.endswith("q_proj.weight"))}
    assert float((logits_of(tmp_path / "out", ids) - said[0]).abs().max()) < 1e-5
