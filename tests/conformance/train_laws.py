"""Laws of what trains (kind ``train``): deterministic, saved and resumed to the same bits, the plain optimizer where
nothing is asked for, used from Python and saying so on the command line.

Such a card is called with some of ``model``, ``example`` and ``optimizer`` and gives an optimizer, or a callback that
hangs on the optimizer it was given; both have ``state_dict``, ``load_state_dict`` and ``progress``.
"""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conformance.measure_laws import Law
from nett.cli.app import run
from nett.core.registry import Card

_SHORT = {"start": 2, "steps": 12, "every": 3, "periods": 2, "sampling": 2, "cycles": 2, "sparsity": 0.5}
_STEPS = 56  # more than any of these methods needs with those settings
_STAGES = (0, 1, 2, 3, 4, 6, 9, 14, 21, 25, 27, 29, 31, 33, 40, 45, _STEPS)


def _torch() -> Any:
    return pytest.importorskip("torch")


class Run:
    """A small network in training, by a card with short settings or others."""

    def __init__(self, card: Card, seed: int = 0, optimizer: str = "AdamW", **more: Any) -> None:
        torch = _torch()
        torch.set_num_threads(1)  # so small a network gains nothing by more
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 5, 3),
            torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(5 * 4, 7), torch.nn.GELU(), torch.nn.Linear(7, 3),
        )  # fmt: skip
        own = {"AdamW": {"lr": 1e-2}, "SGD": {"lr": 5e-2, "momentum": 0.9, "weight_decay": 1e-3}}[optimizer]
        self.plain = getattr(torch.optim, optimizer)(self.model.parameters(), **own)
        self.draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(40, 2, 4, 4, generator=self.draw)
        self.y = (self.x.mean((1, 2, 3)) > 0).long()
        operands = {"model": self.model, "example": self.x[:2], "optimizer": self.plain}
        short = {k: v for k, v in (_SHORT | more).items() if card.parameter(k) is not None}
        self.made = card.load()(*[operands[name] for name in card.operands], **short)
        self.stepper = self.made if isinstance(self.made, torch.optim.Optimizer) else self.plain

    def train(self, steps: int, *, plainly: bool = False) -> list[float]:
        torch, losses = _torch(), []
        for _ in range(steps):
            rows = torch.randperm(40, generator=self.draw)[:16]
            loss = torch.nn.functional.cross_entropy(self.model(self.x[rows]), self.y[rows])
            self.stepper.zero_grad()
            loss.backward()
            if plainly or self.stepper is self.plain:
                self.plain.step()
            else:
                self.stepper.step(loss=loss)
            losses.append(loss.item())
        return losses

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "made": self.made.state_dict(), "plain": self.plain.state_dict()}


def same(one: Any, other: Any) -> bool:
    """To the bit, through dictionaries and lists."""
    torch = _torch()
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other)) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def deterministic_under_a_seed(card: Card, folder: Path) -> None:
    one, other = Run(card), Run(card)
    assert one.train(_STEPS) == other.train(_STEPS)
    assert same(one.state(), other.state())
    assert one.made.progress == other.made.progress and one.made.progress["done"]


def state_resumes_to_the_same_bits(card: Card, folder: Path) -> None:
    """From every stage to the next, through a file that holds nothing but tensors and plain values; the last stage
    first, so that what resumes has been somewhere else."""
    torch = _torch()
    for optimizer in ("AdamW", "SGD"):
        whole, saved = Run(card, optimizer=optimizer), dict[int, bytes]()
        for stage, later in pairwise((*_STAGES, _STEPS)):
            buffer = io.BytesIO()
            torch.save(whole.state() | {"draw": whole.draw.get_state()}, buffer)
            saved[stage] = buffer.getvalue()
            whole.train(later - stage)
        again = Run(card, seed=1, optimizer=optimizer)
        again.x, again.y = whole.x, whole.y
        for stage, later in reversed(list(pairwise(_STAGES))):
            state, expected = (torch.load(io.BytesIO(saved[s]), weights_only=True) for s in (stage, later))
            again.model.load_state_dict(state["model"])
            again.plain.load_state_dict(state["plain"])
            again.made.load_state_dict(state["made"])
            again.draw.set_state(state["draw"])
            again.train(later - stage)
            expected.pop("draw")
            assert same(again.state(), expected), (optimizer, stage)


def plain_optimizer_at_identity(card: Card, folder: Path) -> None:
    """With the card's identity parameters every weight is, to the bit, what the plain optimizer makes of it."""
    assert card.identity, "say with which parameters it does nothing"
    for optimizer in ("AdamW", "SGD"):
        ours, plain = Run(card, optimizer=optimizer, **card.identity), Run(card, optimizer=optimizer)
        if hasattr(plain.made, "detach"):
            plain.made.detach()
        plain.stepper = plain.plain
        assert ours.train(_STEPS) == plain.train(_STEPS, plainly=True)
        assert same(ours.model.state_dict(), plain.model.state_dict())
        assert same(ours.plain.state_dict(), plain.plain.state_dict())


def nothing_happens_before_the_first_step(card: Card, folder: Path) -> None:
    """Making it leaves the model, its mode and the random numbers of the caller as they were."""
    torch = _torch()
    run = Run(card)
    before = copy.deepcopy(run.model.state_dict())
    run.model.eval()
    state = torch.get_rng_state()
    operands = {"model": run.model, "example": run.x[:2], "optimizer": torch.optim.SGD(run.model.parameters(), lr=0.1)}
    card.load()(*[operands[name] for name in card.operands])
    assert same(run.model.state_dict(), before) and not run.model.training
    assert torch.equal(torch.get_rng_state(), state)


def said_on_the_command_line(card: Card, folder: Path) -> None:
    """It is no command: it says how it is used from Python, and leaves with the code of usage."""
    from contextlib import redirect_stderr

    said = io.StringIO()
    with redirect_stderr(said):
        assert run([card.room, card.name, "model"]) == 2
    assert f"nett.{card.room}.{card.name}(" in said.getvalue() and "for x, y in batches" in said.getvalue()


LAWS: list[Law] = [
    deterministic_under_a_seed,
    state_resumes_to_the_same_bits,
    plain_optimizer_at_identity,
    nothing_happens_before_the_first_step,
    said_on_the_command_line,
]
