"""What a policy changes, against the model run the plain way; and what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.cache.judging import bed_of, judge
from nett.core.errors import Refused
from nett.core.tiny import write_llama
from support.cli import nett as cli


def test_a_prompt_that_was_run_once_is_as_good_as_one_run_anew(llama: Any, ids: torch.Tensor) -> None:
    bed = bed_of(llama, ids[:, :72], 48, batch=1)
    for name, more in (
        ("full", {}),
        ("h2o", {"budget": 0.4}),
        ("kvmerger", {"budget": "20tok"}),
        ("ems", {"budget": 0.3}),
    ):
        policy = getattr(nett.cache, name)(**more)
        found = judge(llama, bed, policy)
        with policy.on(llama), torch.no_grad():
            cache = policy.cache(llama)
            logits = [llama(ids[:, :48], past_key_values=cache).logits[:, -1:]]
            logits += [llama(ids[:, i : i + 1], past_key_values=cache).logits for i in range(48, 71)]
        mine = torch.cat(logits, 1).double().log_softmax(-1).numpy()
        with torch.no_grad():
            full = llama(ids[:, :72]).logits[:, 47:-1].double().log_softmax(-1).numpy()
        kl = (np.exp(full) * (full - mine)).sum(-1).mean(-1)
        assert np.allclose(found.kl, kl, atol=1e-5), name
        at = ids[:, 48:72].numpy()
        nll = -np.take_along_axis(mine, at[..., None], -1)[..., 0].mean(-1)
        assert np.allclose(found.policy, nll, atol=1e-4)
        assert (name == "full") == (found.bytes == found.full_bytes)
    assert found.kl.shape == (2,)


def test_the_command(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "llama", layers=2, hidden=32, dtype="F32")
    words = np.random.default_rng(0).choice(["sun", "road", "river", "dust"], 600)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words))
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the sun rose on the road and the river")
    done = cli(
        "cache", "h2o", str(model), "--budget", "0.5", "--text", str(text), "--prompt-file", str(prompt), "--context", "24",
        "--follow", "8", "--samples", "3", "--tokens", "8", "--threads", "1", "--json", str(tmp_path / "said.json"),
    ).succeeded()  # fmt: skip
    assert "nats a token" in done.out and "full cache:" in done.out
    told = json.loads((tmp_path / "said.json").read_text())
    assert told["judged"]["kl"]["mean"] >= 0 and told["ledger"]["share"] < 0.75 and told["text"]["windows"] == 3
    asked = ("cache", "h2o", str(model), "--threads", "1")
    cli(*asked, "--text", str(text), "--context", "200").failed(3, "the model has 128 positions")
    cli(*asked, "--text", str(text), "--budget", "nothing").failed(2, "is not a share")
    cli(*asked, "--text", str(text), "--device", "cuda:9").failed(2, "cannot be used")
    cli(*asked).failed(2, "nothing to continue")


def test_prompts_that_do_not_fit(tmp_path: Path) -> None:
    from nett.cache.showing import show

    model = write_llama(tmp_path / "llama", layers=1, hidden=32)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(Refused, match="holds no text"):
        show(
            nett.cache.full(), str(model), prompt_file=tmp_path / "empty.txt", tokens=4, text=None, samples=1, context=8,
            follow=4, device="cpu", threads=1, json=None, dry_run=False,
        )  # fmt: skip
