"""The demo's report from made-up figures: every number below is invented, to be found again on the page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from demo.console import Ran
from demo.model import Compared
from demo.page import page
from demo.quality import Measured
from demo.story import Story
from demo.texts import Text
from demo.tuning import Course

INVENTED = {  # mean loss on code and on prose
    "base": (3.0, 3.2), "code": (2.6, 3.1), "prose": (2.9, 2.8), "ties": (2.7, 2.9),
    "restored-code": (2.64, 3.3), "restored-prose": (3.1, 2.84),
}  # fmt: skip


@pytest.fixture
def story() -> Story:
    texts = [Text(n, f"invented {n}", {"a": "x" * 10}, {"b": "y" * 5}) for n in ("code", "prose")]
    ran = [Ran("nett scan <model>", 0, 1.25, tuple(f"line {i}" for i in range(40)))]
    made = Story(Path("invented.gguf"), texts, Course(), 2, 128, ran, Compared(3, 1000, 7, 70, 0.0, 9.5))
    for model, losses in INVENTED.items():
        for text, loss in zip(made.names, losses, strict=True):
            made.figures[model, text] = Measured(np.array([loss - 0.1, loss + 0.1]), np.array([0.1, 0.2]))
    made.losses = {"code": [3.5, 3.25], "prose": [3.75, 3.0]}
    for folder in made.outputs:
        made.receipts[folder] = {"room": "merge", "method": "ties", "proof": "kept", "guarantee": "measured",
                                 "bytes_before": 3000, "bytes_after": 1234, "seconds": 1.5, "checks": [{"ok": True}],
                                 "peak_memory_bytes": 99}  # fmt: skip
    made.receipts["tall_masks"] |= {
        "inputs": [{"name": n, "role": "model", "bytes": 1000} for n in made.names],
        "tasks": [{"name": n, "relative_l2": 0.0125, "mask_ones": 0.625} for n in made.names],
    }
    made.taken = {"seconds": 123.4, "cpu_seconds": 222.0, "peak_memory_bytes": 2.5e9}
    return made


def words(story: Story) -> str:
    found = re.sub(r"<style>.*?</style>", "", page(story).render(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split())


def test_the_page_says_what_came_out(story: Story) -> None:
    said = words(story)
    assert "on held-out code from 20.09 to 13.46, on held-out prose from 24.53 to 16.44" in said
    assert "the one model merged with ties keeps 75 % (code), 75 % (prose)" in said
    assert "the tasks restored from tall_masks keep 90 % (code), 90 % (prose)" in said
    assert "6 of 6 receipts hold" in said and "0.1500 ± 0.0500" in said and "0.300 ± 0.000" in said
    assert "−38 %" in said  # 1,234 bytes of 2,000
    assert "in 123 s, 222 CPU seconds, 2.5 GB of memory, with nett" in said
    assert "$ nett scan <model>" in said and "… 10 more lines" in said


def test_the_page_needs_no_network_and_no_script(story: Story) -> None:
    made = page(story).render()
    assert not re.search(r"<script|<img|<link|src=|url\(|https?://(?!www\.w3\.org)", made)
    assert made.count("<svg") == 4


def test_a_proof_that_does_not_hold_is_what_the_page_begins_with(story: Story) -> None:
    assert 'class="verdict good"' in page(story).render()
    story.receipts["ties"] = {**story.receipts["ties"], "proof": "failed"}
    assert 'class="verdict bad"' in page(story).render() and "5 of 6 receipts hold" in words(story)


def test_a_task_is_judged_on_the_texts_that_it_should_know(story: Story) -> None:
    judged = [(model, text) for model, text, *_ in story.gains()]
    assert judged == [("code", "code"), ("prose", "prose"), ("ties", "code"), ("ties", "prose"),
                      ("restored-code", "code"), ("restored-prose", "prose")]  # fmt: skip


def test_the_figures_are_plain_json(story: Story) -> None:
    back = json.loads(json.dumps(story.as_json(), allow_nan=False))
    row = next(r for r in back["quality"] if r["model"] == "ties" and r["text"] == "prose")
    assert row["perplexity"] == pytest.approx(np.exp(2.9)) and row["kl_to_base"] == pytest.approx(0.15)
    assert back["texts"][0] == {"name": "code", "about": "invented code", "train": ["a"], "held_out": ["b"]}
    assert back["commands"] == [{"command": "nett scan <model>", "exit": 0, "seconds": 1.25}]
