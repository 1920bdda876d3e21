"""What a change cost, piece by piece, against whole logits of transformers and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nett.core.blocks import Walk, open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.quality import compare, likelihoods
from nett.core.tiny import fine_tune_of
from nett.core.windows import Windows


def by_hand(folder: Path, ids: Any) -> Any:
    """log p of every token after every position, float64 [windows, length, vocabulary]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits.double().numpy()
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_figures_are_those_of_whole_logits(llama: Path, tmp_path: Path) -> None:
    """Windows of 100 tokens: more than one piece, the last one not full."""
    other = fine_tune_of(llama, tmp_path / "other", seed=1, density=1.0, size=0.1)
    ids = np.random.default_rng(0).integers(3, 60, (3, 100))
    a, b = by_hand(llama, ids)[:, :-1], by_hand(other, ids)[:, :-1]
    following = ids[:, 1:, None]
    with open_checkpoint(llama) as first, open_checkpoint(other) as second:
        found = compare(open_skeleton(first), open_skeleton(second), Windows(ids, "text", ""))
        again = likelihoods(Walk(open_skeleton(second), torch.from_numpy(ids)).through())
    assert np.allclose(found.original, -np.take_along_axis(a, following, 2).mean((1, 2)), rtol=1e-5)
    assert np.allclose(found.result, -np.take_along_axis(b, following, 2).mean((1, 2)), rtol=1e-5)
    assert np.allclose(found.kl, (np.exp(a) * (a - b)).sum(-1).mean(1), rtol=1e-3)
    assert np.allclose(found.flips, (a.argmax(-1) != b.argmax(-1)).mean(1), atol=1.01 / 99)
    assert 0 < found.flips.mean() < 1 and np.allclose(again, found.result)


def test_no_more_logits_at_a_time_than_asked_for(llama: Path) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (2, 20)))
    with open_checkpoint(llama) as checkpoint:
        walk = Walk(open_skeleton(checkpoint), ids).through()
        seen = [(number, at, tuple(logits.shape)) for number, _, at, logits in walk.pieces(8)]
        whole = torch.cat([logits for _, logits in walk.logits()])
        for number, _, at, logits in walk.pieces(8):
            assert torch.allclose(logits, whole[number, at : at + len(logits)], atol=1e-5)
    assert seen == [(n, at, (min(8, 19 - at), 64)) for n in (0, 1) for at in (0, 8, 16)]


def test_what_is_equal_outside_the_blocks_is_held_once(llama: Path, tmp_path: Path) -> None:
    other = fine_tune_of(llama, tmp_path / "other", seed=1, density=1.0, size=0.1)
    with open_checkpoint(llama) as first, open_checkpoint(llama) as same, open_checkpoint(other) as changed:
        skeletons = [open_skeleton(c) for c in (first, same, changed)]
        with skeletons[0].ground() as model:
            places = {n: model.get_parameter(n).data_ptr() for n in skeletons[0].ground_names}
            for skeleton, shared in zip(skeletons[1:], (True, False), strict=True):
                with skeleton.ground(skeletons[0]) as again:
                    table = again.get_input_embeddings().weight
                    assert (table.data_ptr() in places.values()) is shared
                    plain = skeleton.tensor(skeleton.stored["model.embed_tokens.weight"]).float()
                    assert torch.equal(table, plain)
            assert not any(p.is_meta for n, p in model.named_parameters() if n in places)  # the lender keeps its own
