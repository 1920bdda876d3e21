"""HESSO-CRIC: its phases, that the search leaves no trace, what its choice rests on, and that it needs the loss."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import nett  # noqa: E402
from nett.core.errors import Refused, UsageError  # noqa: E402
from support.networks import ResNet  # noqa: E402


def case(**more: Any) -> tuple[Any, Any, Any, Any]:
    torch.manual_seed(0)
    model, x, y = ResNet(1, "B"), torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))
    settings = {"sparsity": 0.5, "start": 2, "sampling": 3, "cycles": 3, "steps": 4, "lr": 1e-2}
    return model, x, y, nett.weights.hesso_cric(model, x[:2], **settings | more)


def step(model: Any, x: Any, y: Any, optimizer: Any, watch: Any = None) -> float:
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    if watch is not None:
        watch()
    optimizer.step(loss=loss)
    return float(loss.detach())


def test_phases_follow_and_the_search_leaves_no_trace() -> None:
    model, x, y, optimizer = case()
    fewest, most = optimizer.search_steps
    assert (fewest, most) == (6 * 6 + 3, 6 * 6 + 9)
    phases, state = [], dict[str, Any]()

    def remember() -> None:
        state.update(copy.deepcopy({"model": model.state_dict(), "base": optimizer.base.state_dict()["state"]}))

    for n in range(60):
        step(model, x, y, optimizer, remember if n == 2 else None)
        phases.append(optimizer.phase)
        if optimizer.phase == "fading" and optimizer.since == 0:  # the step that ended the search
            now = {"model": model.state_dict(), "base": optimizer.base.state_dict()["state"]}
            assert all(torch.equal(now["model"][k], v) for k, v in state["model"].items())
            for i, moments in state["base"].items():
                assert all(torch.equal(now["base"][i][k], v) for k, v in moments.items())
    counts = {p: phases.count(p) for p in dict.fromkeys(phases)}
    assert list(counts) == ["before", "trials", "cycles", "fading", "after"] and counts["before"] == 2
    assert fewest <= counts["trials"] + counts["cycles"] + 1 <= most + 1
    assert optimizer.done and optimizer.progress["zero"] == optimizer.structure.size // 2
    small = optimizer.smaller()
    model.eval(), small.eval()
    with torch.no_grad():
        assert float((model(x) - small(x)).abs().max()) < 1e-5


def test_a_layer_that_the_loss_needs_keeps_more_units() -> None:
    """The loss of trials on one group is made enormous from outside: that group's units are then the last to go."""
    gone = []
    for scale in (1.0, 1e6):
        model, x, y, optimizer = case(start=0)
        group = next(i for i, s in enumerate(optimizer.slices) if s.name == "layer3.0.conv1")
        for _ in range(36):
            trial, part = divmod(optimizer.since, 6)
            factor = scale if trial == group and part % 2 else 1.0
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step(loss=loss.detach() * factor)
        for _ in range(20):
            step(model, x, y, optimizer)
        gone.append(int(optimizer.zero[group].sum()))
    assert gone[1] == 0 < gone[0]


def test_a_trial_zeroes_the_lowest_share_of_one_group_only() -> None:
    model, x, y, optimizer = case(start=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for trial in range(4):
        step(model, x, y, optimizer)
        zero = [int((s.norms() == 0).sum()) for s in optimizer.slices]
        size = optimizer.slices[trial // 3].size
        expected = [0] * len(zero)
        expected[trial // 3] = max(1, int(size * (0.25, 0.5, 0.75)[trial % 3]))
        assert zero == expected
        step(model, x, y, optimizer)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_choice_is_the_mean_of_scores_and_the_loss_ratio() -> None:
    """At the end of the search, from the sums that it kept, with NumPy."""
    model, x, y, optimizer = case(scope="layer", cycles=1)
    while optimizer.phase != "fading":
        step(model, x, y, optimizer)
    trials = 3 * len(optimizer.slices)
    for i, one in enumerate(optimizer.slices):
        ratio = float(optimizer.losses[i]) / 3 / (optimizer.whole / trials)
        score = optimizer.sums[i].numpy() / optimizer.count + ratio / one.size
        lowest = np.sort(np.argsort(score, kind="stable")[: int(one.size * 0.5)])
        assert np.array_equal(np.flatnonzero(optimizer.fading[i].numpy()), lowest)
    assert optimizer.count == trials + 3


def test_it_needs_the_loss_and_a_finite_one() -> None:
    model, x, y, optimizer = case(start=1)
    step(model, x, y, optimizer)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(UsageError, match=r"needs the loss.*\n.*step\(loss=loss\)"):
        optimizer.step()
    with pytest.raises(Refused, match="loss of step 3 is nan"):
        optimizer.step(loss=float("nan"))
    with pytest.raises(Refused, match="it is in the phase 'trials'"):
        optimizer.smaller()
