"""Perplexity, KL, their standard errors and the rule that a fine-tune must help, against plain NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from demo.console import DemoFailed
from demo.quality import Measured, gain, kept, measure, measure_model, paired, standard_error, table

torch = pytest.importorskip("torch", reason="needs nett[models]")

PASSAGES, LENGTH, VOCABULARY = 5, 7, 11


def log_softmax(x: Any) -> Any:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture
def drawn() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    mine, theirs = (log_softmax(rng.normal(size=(PASSAGES, LENGTH - 1, VOCABULARY))) for _ in range(2))
    return rng.integers(0, VOCABULARY, (PASSAGES, LENGTH)), mine, theirs


def test_loss_and_kl_of_each_passage(drawn: tuple[Any, Any, Any]) -> None:
    ids, mine, theirs = drawn
    found = measure(torch.tensor(mine), torch.tensor(ids), torch.tensor(theirs))
    for p in range(PASSAGES):
        loss = -np.mean([mine[p, t, ids[p, t + 1]] for t in range(LENGTH - 1)])
        kl = np.mean([np.sum(np.exp(theirs[p, t]) * (theirs[p, t] - mine[p, t])) for t in range(LENGTH - 1)])
        assert found.loss[p] == pytest.approx(loss, rel=1e-12)
        assert found.kl[p] == pytest.approx(kl, rel=1e-12)
    assert measure(torch.tensor(theirs), torch.tensor(ids), torch.tensor(theirs)).kl == pytest.approx(0, abs=1e-15)


def test_perplexity_and_its_error_are_those_of_the_mean_loss() -> None:
    loss = np.array([2.0, 2.5, 3.0, 2.2])
    found = Measured(loss, loss)
    error = math.sqrt(sum((x - loss.mean()) ** 2 for x in loss) / 3 / 4)
    assert standard_error(loss) == pytest.approx(error, rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(2.425), rel=1e-12)
    assert found.perplexity_error == pytest.approx(math.exp(2.425) * error, rel=1e-12)
    assert math.isnan(standard_error(loss[:1]))


def test_differences_are_taken_passage_by_passage() -> None:
    base, tuned = (Measured(np.array(x), np.zeros(3)) for x in ([3.0, 5.0, 9.0], [2.5, 4.4, 8.6]))
    better, error = paired(base, tuned)
    assert better == pytest.approx(0.5) and error == pytest.approx(0.1 / math.sqrt(3))
    half = Measured(base.loss - 0.25, base.kl)
    assert kept(base, tuned, half) == pytest.approx(0.5)
    assert kept(base, tuned, base) == 0 and kept(base, tuned, tuned) == 1
    assert math.isnan(kept(base, base, half))


@pytest.mark.parametrize("after", [[2.0, 2.0], [2.1, 1.9], [math.nan, 1.0], [3.0, 2.0]])
def test_a_fine_tune_that_does_not_lower_its_perplexity_fails_the_demo(after: list[float]) -> None:
    base, tuned = (Measured(np.array(x), np.zeros(2)) for x in ([2.0, 2.0], after))
    with pytest.raises(DemoFailed, match=r"on held-out code 7\.39 before.*a lower perplexity was expected"):
        gain("code", base, tuned)


def test_one_that_does_is_told_with_its_error() -> None:
    base, tuned = (Measured(np.array(x), np.zeros(2)) for x in ([2.0, 2.0], [1.9, 1.7]))
    assert "7.39 before, 6.05 after" in gain("code", base, tuned)
    assert "lower by 0.200 ± 0.100 nats" in gain("code", base, tuned)


def test_the_table_has_a_row_a_model_and_each_figure_with_its_error() -> None:
    one = Measured(np.log([2.0, 2.0]), np.array([0.1, 0.3]))
    headers, rows = table({("m", "a"): one, ("m", "b"): one}, ["m"], ["a", "b"])
    assert headers == ["model", "perplexity, a", "perplexity, b", "KL, a", "KL, b"]
    assert rows == [["m", *["2.00 ± 0.00"] * 2, *["0.2000 ± 0.1000"] * 2]]


def test_a_model_is_measured_in_batches_as_in_one(drawn: tuple[Any, Any, Any]) -> None:
    ids = torch.tensor(drawn[0])

    class Model:
        """Logits that depend on the token and on which model it is."""

        def __init__(self, seed: int) -> None:
            self.rows = torch.tensor(np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)))

        def eval(self) -> None: ...

        def __call__(self, some: Any, **_: Any) -> Any:
            return type("Out", (), {"logits": self.rows[some]})

    seen: list[int] = []
    reference: list[Any] = []
    base = measure_model(Model(0), ids, reference, batch=2, tick=seen.append)
    assert seen == [2, 2, 1] and [len(r) for r in reference] == [2, 2, 1]
    assert base.kl == pytest.approx(0, abs=1e-12)
    other = measure_model(Model(1), ids, reference, batch=2)
    for p, passage in enumerate(drawn[0]):
        a, b = (log_softmax(Model(s).rows.numpy().astype(np.float32)[passage[:-1]]) for s in (0, 1))
        assert base.loss[p] == pytest.approx(-a[np.arange(LENGTH - 1), passage[1:]].mean(), rel=1e-5)
        assert other.kl[p] == pytest.approx((np.exp(a) * (a - b)).sum(-1).mean(), rel=1e-5)
