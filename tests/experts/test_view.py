"""The view of a mixture: seven families, and what it refuses from headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nett.core.blocks import Walk, open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused
from nett.core.tiny import write_llama
from nett.experts.chosen import Chosen
from nett.experts.view import experts_view
from support.mixtures import FAMILIES, logits_of, rewrite, tensors, write_mixture

STEM = "model.layers.0.block_sparse_moe"


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Sizes, matrices, the model run block by block, and a part of its experts, for each family as transformers saves it."""
    folder = write_mixture(tmp_path / family, family)
    held, ids = tensors(folder), torch.arange(3, 20)[None]
    with open_checkpoint(folder) as checkpoint:
        layers = experts_view(checkpoint)
        assert [(v.count, v.width, v.hidden, v.chosen) for v in layers] == [(4, 16, 32, 2)] * 2
        first = layers[0].read()
        if layers[0].place.fused:
            both, down = (held[f"{layers[0].name}.{n}.weight"] for n in ("input_linear", "output_linear"))
            gate, up = both[:, :16], both[:, 16:]
        else:
            names = ("w1", "w3", "w2") if "block_sparse" in layers[0].name else ("gate_proj", "up_proj", "down_proj")
            gate, up, down = (
                torch.stack([held[f"{layers[0].name}.experts.{e}.{n}.weight"] for e in range(4)]) for n in names
            )
        assert all(torch.equal(a, b) for a, b in ((first.gate, gate), (first.up, up), (first.down, down)))
        again = layers[0].place.stored(first)
        assert again.keys() == set(layers[0].place.experts) and all(torch.equal(again[n], held[n]) for n in again)
        for _, ours in Walk(open_skeleton(checkpoint), ids).through().logits():
            assert torch.equal(ours, logits_of(folder, ids))
        part = Chosen(checkpoint, [[1, 3]] * 2)
        assert torch.equal(
            layers[1].router()[[1, 3]], torch.from_numpy(part.values(layers[1].place.router).reshape(2, 32))
        )
        experts = sum(v.nbytes for v in layers)
        rows = sum(checkpoint.tensors[n].nbytes for v in layers for n in (v.place.router, *v.place.beside))
        assert part.nbytes == checkpoint.nbytes - (experts + rows) // 2
        assert experts_view(part)[0].count == 2
    assert bool(layers[0].place.shared) == (family in ("qwen2_moe", "deepseek_v3"))


def test_a_part_reads_only_what_is_chosen(mixtral: Path) -> None:
    with open_checkpoint(mixtral) as checkpoint:
        part = Chosen(checkpoint, [[2], [0]])
        for name in part.tensors:
            part.read(name)
        assert part.bytes_read == part.nbytes < checkpoint.nbytes
        row = part.read(f"{STEM}.gate.weight", 5, 9)
        assert np.array_equal(row, checkpoint.read(f"{STEM}.gate.weight", 2 * 32 + 5, 2 * 32 + 9))


def _drop(name: str) -> Any:
    return lambda held, config: held.pop(name)


def _set(name: str, make: Any) -> Any:
    return lambda held, config: held.__setitem__(name, make(held[name]))


BAD = [
    ("lacks the up matrices of experts 2 of 4", _drop(f"{STEM}.experts.2.w3.weight")),
    ("has 4 experts, its config says num_local_experts = 8", lambda held, config: config.update(num_local_experts=8)),
    (r"the router .* has the shape \[3, 32\], its 4 experts", _set(f"{STEM}.gate.weight", lambda t: t[:3])),
    ("has no router", _drop(f"{STEM}.gate.weight")),
    ("differ in shape", _set(f"{STEM}.experts.1.w2.weight", lambda t: t[:, :8])),
    ("is no matrix of an expert", lambda held, config: held.update({f"{STEM}.experts.0.w1.bias": torch.zeros(16)})),
    ("chooses 5 of 4 experts", lambda held, config: config.update(num_experts_per_tok=5)),
    ("as gpt_oss does", lambda held, config: config.update(model_type="gpt_oss")),
    ("as llama4_text does", lambda held, config: config.update(model_type="llama4_text")),
]


@pytest.mark.parametrize(("words", "change"), BAD, ids=[words for words, _ in BAD])
def test_bad_input(words: str, change: Any, mixtral: Path, tmp_path: Path) -> None:
    """Each named from headers, before a weight is read."""
    folder = rewrite(mixtral, tmp_path / "bad", change)
    with open_checkpoint(folder) as checkpoint, pytest.raises(Refused, match=words):
        experts_view(checkpoint)


def test_dense_model(tmp_path: Path) -> None:
    with open_checkpoint(write_llama(tmp_path / "dense")) as checkpoint, pytest.raises(Refused, match="nett weights"):
        experts_view(checkpoint)


def test_transposed(mixtral: Path, tmp_path: Path) -> None:
    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        for layer in (0, 1):
            stem = f"model.layers.{layer}.block_sparse_moe.experts"
            w1, w2, w3 = (
                torch.stack([held.pop(f"{stem}.{e}.{w}.weight") for e in range(4)]) for w in ("w1", "w2", "w3")
            )
            held |= {f"{stem}.gate_up_proj": torch.cat([w1, w3], 1).mT, f"{stem}.down_proj": w2.mT}

    with (
        open_checkpoint(rewrite(mixtral, tmp_path / "bad", change)) as checkpoint,
        pytest.raises(Refused, match="do not fit together"),
    ):
        experts_view(checkpoint)
