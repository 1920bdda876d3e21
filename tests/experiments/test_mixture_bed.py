"""The bed of the claims about experts: its texts are apart, its tokens are bytes, and it is trained once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from claims import mixture_bed  # noqa: E402
from claims.mixture_bed import SMALL, bed, losses, sums_right  # noqa: E402
from claims.mixture_texts import KINDS, Texts, sums  # noqa: E402

import nett  # noqa: E402


def _texts(most: int, seed: int) -> Texts:
    """Texts of no file, so that the test is quick: two kinds by rule, and sums as the bed has them."""
    learn, judge = sums(most, most // 20, seed)
    by_rule = {"code": b"def f(x):\n    return x\n" * 500, "prose": b"the sun is on the road. " * 500}
    return Texts(by_rule | {"sums": learn}, by_rule | {"sums": judge})


def test_sums_are_right_and_apart() -> None:
    learn, judge = sums(300_000, 9_000)
    assert len(learn) == 300_000 and len(judge) == 9_000
    seen, asked = (set(text.decode().splitlines()[:-1]) for text in (learn, judge))
    assert not seen & asked and len(asked) > 500
    for line in [*asked, *list(seen)[:500]]:
        left, _, right = line.partition("=")
        a, b = left.split("+")
        assert int(a) + int(b) == int(right)


def test_trained_once_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty steps of the small recipe take a nat and a half off the 5.55 of chance; the folder speaks bytes, and is
    found again without training."""
    monkeypatch.setattr(mixture_bed, "texts", _texts)
    recipe = replace(SMALL, steps=40, text=20_000)
    folder = bed(recipe, tmp_path)
    said: dict[str, Any] = json.loads((folder / "training.json").read_text())
    assert 45_000 < said["parameters"] < 55_000
    assert said["path"][0][1] > 5 and max(said["nats"]["code"], said["nats"]["prose"]) < 4.0
    text = "naïve 1+1=2\n"
    words = nett.load(folder, as_tokenizer=True)
    assert words(text, add_special_tokens=False)["input_ids"] == list(text.encode())
    model = nett.load(folder, as_model=True).eval()
    assert losses(model, (folder / "judge-code.txt").read_bytes(), 64) == pytest.approx(said["nats"]["code"], abs=2e-3)
    assert 0 <= sums_right(model, 3) <= 1
    assert all((folder / f"learn-{kind}.txt").is_file() for kind in KINDS)
    monkeypatch.setattr(mixture_bed, "trained", lambda *_: pytest.fail("trained again"))
    assert bed(recipe, tmp_path) == folder
