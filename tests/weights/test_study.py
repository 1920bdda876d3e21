"""Studies: arms against models put together by hand, paired tests against SciPy's tables, what is resumed, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import nett
from nett.core import torch_model
from nett.core.blocks import Skeleton
from nett.core.confined import run_program
from nett.core.errors import Refused, UsageError
from nett.core.paired_tests import adjusted, mcnemar
from nett.core.windows import read_windows
from nett.weights import studying
from nett.weights.study_tasks import Task, read_tasks
from nett.weights.study_texts import Sources

QUICK: dict[str, Any] = {"bits": "4,2", "length": 24, "samples": 4, "judged": 6, "every": 3, "threads": 1, "new": 6}
HUMAN = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Sum."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_mcnemar_by_its_formula(seed: int, count: int) -> None:
    """p summed up from binomial coefficients; adjusted p by the step-up rule written out."""
    rng = np.random.default_rng(seed)
    first, second = rng.random(count) < 0.6, rng.random(count) < 0.5
    found = mcnemar(first, second)
    lost, gained = sum(first & ~second), sum(~first & second)
    n, k = lost + gained, min(lost, gained)
    tail = sum(math.comb(int(n), i) for i in range(int(k) + 1)) / 2 ** int(n)
    assert found.p == pytest.approx(min(1.0, 2 * tail if 2 * k != n else 1.0))
    assert (found.lost, found.gained, found.tasks) == (lost, gained, count)
    if lost:
        assert found.odds == pytest.approx(gained / lost) and found.low <= found.odds <= found.high
    values = list(rng.random(7))
    order = np.argsort(values)
    ranked = [values[i] * 7 / (place + 1) for place, i in enumerate(order)]
    expected = {int(i): min(1.0, *ranked[place:], 1.0) for place, i in enumerate(order)}
    assert adjusted(values) == pytest.approx([expected[i] for i in range(7)])
    assert adjusted([]) == []


@pytest.fixture
def files(text: Path, tmp_path: Path) -> dict[str, Any]:
    """Texts to calibrate on, and one to judge by that shares no run of tokens with them."""
    other = tmp_path / "apart.txt"
    other.write_text("".join(np.random.default_rng(3).choice(list("abcdefgh"), 2000)))
    second = tmp_path / "second.txt"
    second.write_text(" ".join(np.random.default_rng(5).choice(["tree", "snow", "light", "stone"], 800)))
    return {"calibration": f"words={text},more={second},mixed,random", "eval": f"apart={other}"}


def test_arms_are_what_a_model_put_together_by_hand_gives(llama: Path, other: Path) -> None:
    told = nett.weights.study([str(llama)], eval=f"a={other}", by="rtn", **QUICK)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    ids = torch.from_numpy(read_windows(other, torch_model.tokenizer(llama), samples=6, length=24, vocabulary=64).ids)

    def asked() -> tuple[float, Any]:
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].double()
        nll = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()
        return float(nll), (logits.argmax(-1) == ids[:, 1:])[:, 2::3].numpy().reshape(-1)

    first = asked()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = nett.weights.rtn(module.weight.data.bfloat16(), bits=2, group=32).dense().float()
    second = asked()
    arms = {a["bits"]: a for a in told["arms"]}
    assert arms[0]["nll"]["a"] == pytest.approx(first[0], rel=1e-5)
    assert arms[2]["nll"]["a"] == pytest.approx(second[0], rel=1e-4)
    assert arms[2]["hits a"] == pytest.approx(second[1].mean()) and told["questions"] == {"a": len(second[1])}
    (row,) = [r for r in told["comparisons"] if r["bits"] == 2]
    assert (row["lost"], row["gained"]) == (int(sum(first[1] & ~second[1])), int(sum(~first[1] & second[1])))
    assert told["summary"][-1]["ratio a"][0] == pytest.approx(math.exp(second[0] - first[0]), rel=1e-4)


def test_all_arms_once_on_the_same_questions(
    llama: Path, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, code = tmp_path / "out", tmp_path / "code.py"
    code.write_text("def run(road):\n" + "".join(f"    sun{i} = road + {i}\n" for i in range(9)) + "    return road\n")
    files["calibration"] = files["calibration"].replace(",mixed", "")
    told = nett.weights.study([str(llama)], draws=2, out=out, tasks=code, **files, **QUICK)
    names = [(a["bits"], a["source"], a["draw"]) for a in told["arms"]]
    assert names[0] == (0, "", 0) and len(names) == 1 + 2 * 3 * 2 == len(set(names))
    assert [r["draws"] for r in told["summary"]] == [1] + [2] * 6
    assert len(told["comparisons"]) == 2 * (12 + 2 * 2 * 3)  # questions: tokens, parses
    page = (out / "study.html").read_text()
    assert "perplexity" in page.lower() and json.loads((out / "study.json").read_text())["tasks"] == 1
    done = sorted(out.glob("arm-*.json"))
    assert len(done) == len(names)
    done[0].unlink()
    done[1].write_text("{cut off")
    calls = []
    real = studying.quantise
    monkeypatch.setattr(studying, "quantise", lambda *a: (calls.append(1), real(*a))[1])
    again = nett.weights.study([str(llama)], draws=2, out=out, tasks=code, **files, **QUICK)
    assert len(calls) == 2
    assert [r | {"seconds": 0} for r in again["arms"]] == [r | {"seconds": 0} for r in told["arms"]]
    assert again["comparisons"] == told["comparisons"]
    more = nett.weights.study([str(llama)], draws=2, out=out, tasks=code, **files, **QUICK | {"bits": "4,2,3"})
    assert len(calls) == 2 + 6 and len(more["arms"]) == len(names) + 6


def test_the_model_is_itself_again_after_an_arm(llama: Path, files: dict[str, Any]) -> None:
    """The order of the arms makes no difference."""
    files["calibration"] = files["calibration"].replace(",mixed,random", "")
    one = nett.weights.study([str(llama)], **files, **QUICK | {"bits": "2"})
    both = nett.weights.study([str(llama)], **files, **QUICK | {"bits": "2,8"})
    rows = {(a["bits"], a["source"]): a["nll"] for a in both["arms"]}
    assert all(rows[a["bits"], a["source"]] == a["nll"] for a in one["arms"])


def test_draws() -> None:
    a, b = np.arange(1000), np.arange(5000, 6000)
    sources = Sources(["a", "b", "mixed", "random"], 10, 20, 64, {"a": a, "b": b}, {"a": "x", "b": "y"})
    for name in sources.names:
        first, again, other = sources.draw(name, 0), sources.draw(name, 0), sources.draw(name, 1)
        assert first.shape == (20, 10) and np.array_equal(first, again) and not np.array_equal(first, other)
    rows = sources.draw("a", 0)
    assert len({int(r[0]) for r in rows}) == 20 and np.array_equal(rows, rows[:, :1] + np.arange(10))
    mixed = sources.draw("mixed", 0)
    assert (mixed < 1000).all(1).sum() == 10 and (mixed >= 5000).all(1).sum() == 10
    assert sources.draw("random", 0).min() >= 0 and sources.draw("random", 0).max() < 64


def test_tasks_of_every_kind(tmp_path: Path) -> None:
    human = tmp_path / "human.jsonl"
    human.write_text(json.dumps(HUMAN) + "\n")
    (task,) = read_tasks(human, 5)
    answer = task.cut("    return a + b\n\ndef other():\n    pass\n", whole=True)
    assert answer == "    return a + b\n" and task.parses(answer) and run_program(task.program(answer)).passed
    assert run_program(task.program("    return a - b")).why == "AssertionError"
    assert task.cut("    return a + b\n    x = (", whole=False) == "    return a + b"
    assert (
        not task.parses("    return (") and not task.parses("  \n") and not task.parses("    return '" + "(" * 10_000)
    )
    mbpp = tmp_path / "mbpp.json"
    mbpp.write_text(
        json.dumps([{"task_id": 1, "prompt": "Add.", "test_imports": [], "test_list": ["assert add(1, 2) == 3"]}])
    )
    (task,) = read_tasks(mbpp, 5)
    answer = task.cut("def add(a, b):\n    return a + b\nassert False\n", whole=True)
    assert "assert add(1, 2) == 3" in task.prompt and run_program(task.program(answer)).passed
    code = tmp_path / "code.py"
    code.write_text("class A:\n    def f(self):\n" + "        x = 1\n" * 8 + "\ndef short():\n    pass\n")
    (task,) = read_tasks(code, 5)
    assert (task.name, task.prompt) == ("f:2", "def f(self):\n" + "    x = 1\n" * 3 + "    x = 1")
    assert task.parses("\n    return x") and not task.parses("\nreturn (")


def test_code_is_run_only_when_asked(llama: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    human = tmp_path / "human.jsonl"
    human.write_text("".join(json.dumps(HUMAN | {"prompt": "sun\n", "task_id": str(i)}) + "\n" for i in range(2)))
    ran = []
    monkeypatch.setattr(
        studying, "run_program", lambda p, limits: (ran.append(p), run_program("assert 1", limits=limits))[1]
    )
    how = {**QUICK, "by": "rtn", "bits": "8", "eval": f"a={other}", "tasks": human, "out": tmp_path / "out"}
    told = nett.weights.study([str(llama)], **how)
    assert not ran and "passes its tests" not in told["summary"][0]
    told = nett.weights.study([str(llama)], **how, run_code=True)
    assert len(ran) == 4 and told["summary"][0]["passes its tests"] == 1.0 and "limits" in told["barriers"]
    assert all("check(add)" in p for p in ran)
    nett.weights.study([str(llama)], **how, run_code=True)
    assert len(ran) == 4
    assert "Barriers that stood" in (tmp_path / "out" / "study.html").read_text()


def test_refusals(llama: Path, files: dict[str, Any], text: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], match: str, **more: Any) -> None:
        with pytest.raises(kind, match=match):
            nett.weights.study([str(llama)], **(files | QUICK | more))

    refused(Refused, "calibration text itself", eval=f"a={text}")
    copied = tmp_path / "copied.txt"
    copied.write_text("dust " + text.read_text()[100:9000])
    refused(Refused, "stands in the calibration text", eval=f"a={copied}")
    refused(UsageError, "calibrated", calibration="")
    refused(UsageError, "needs texts", eval="")
    refused(UsageError, "no file", eval="a=nowhere.txt")
    refused(UsageError, "named twice", calibration=f"a={text},a={text}")
    refused(UsageError, "made of other texts", calibration="mixed,random")
    refused(UsageError, "no method that takes bits", by="wanda")
    refused(UsageError, "none are named", run_code=True)
    refused(Refused, "windows of 24 are drawn", samples=100_000)
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    refused(Refused, "holds no tasks", tasks=empty)
    assert isinstance(Task("", "", "", "", True).program(""), str) and Skeleton
