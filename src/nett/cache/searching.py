"""The search itself: continue the leaves, judge what came, choose which of them are continued and how often."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.cache.search_tree import Generate, Node, Reward, Step, kv_size, unique_nodes
from nett.core.errors import NettError

WHERE = "cache/ets"
Select = Callable[[Sequence[Node], int], Sequence[int]]  # open leaves, width -> continuations of each


@final
@dataclass(frozen=True)
class Answer:
    """What the branches that ended in one answer came to together. ``weight``: the sum of their scores."""

    answer: str
    weight: float
    best: float
    leaves: tuple[Node, ...]


@final
@dataclass(frozen=True)
class Found:
    """``answer``: the one that won, None where no branch came to one; ``answers``: all, best first; ``ledger``: what it
    took; ``leaves``: the ends of all branches that ended."""

    answer: str | None
    answers: tuple[Answer, ...]
    ledger: dict[str, Any]
    leaves: tuple[Node, ...]


def search(
    prompt: str | Step,
    generate: Generate,
    reward: Reward,
    select: Select,
    *,
    width: int,
    depth: int,
    seed: int,
) -> tuple[list[Node], dict[str, Any]]:
    """The leaves that are done, and the ledger.

    A leaf that is done takes one from the width. A node's continuations depend on the seed and on its place only, so that
    searches of several kinds meet the same steps. Ledger: ``kv_tokens`` is the sum over the steps of what the cache holds
    before anything is dropped (:func:`kv_size` of all leaves of that step); ``kv_peak`` the largest of these; ``calls``
    the leaves that were continued; ``generated`` the tokens that were generated; ``kept`` the leaves continued at each step.
    """
    root = Node(None, _as_step(prompt, generate))
    live: list[tuple[Node, int]] = [(root, width)]
    done: list[Node] = []
    ledger: dict[str, Any] = {"steps": 0, "calls": 0, "generated": 0, "kv_tokens": 0, "kv_peak": 0, "kept": []}
    held = [root]
    for _ in range(depth):
        children = [c for found in _continued(live, generate, seed) for c in found]
        _judge(children, reward)
        size = kv_size(children)
        ledger["steps"] += 1
        ledger["calls"] += len(live)
        ledger["kept"].append(len(live))
        ledger["generated"] += sum(c.step.tokens for c in children)
        ledger["kv_tokens"] += size
        ledger["kv_peak"] = max(ledger["kv_peak"], size)
        ended = [c for c in children if c.step.done]
        done += ended
        width -= len(ended)
        leaves = [c for c in children if not c.step.done]
        counts = select(leaves, width) if leaves and width > 0 else []
        live = [(leaf, n) for leaf, n in zip(leaves, counts, strict=True) if n > 0] if counts else []
        needed = unique_nodes(leaf for leaf, _ in live)
        ours = {id(node) for node in needed}
        for node in [*held, *children]:
            if id(node) not in ours:
                node.state = None  # what a generator keeps there is let go
        held = needed
        if not live:
            break
    ledger["kv_mean"] = ledger["kv_tokens"] / ledger["steps"]
    ledger["done"] = len(done)
    return done, ledger


def _continued(live: Sequence[tuple[Node, int]], generate: Generate, seed: int) -> list[list[Node]]:
    """The children of each leaf; several leaves at a time where the generator says ``at_once``."""

    def one(asked: tuple[Node, int]) -> list[Node]:
        node, count = asked
        found = list(generate(node, count, np.random.default_rng([seed, *node.path])))
        place = f"step {node.depth + 1}, after {node.step.text[-60:]!r}"
        if not found:
            raise NettError(
                f"generate gave nothing at {place}",
                where=WHERE,
                hint="A branch that ends must say so: Step(…, done=True).",
            )
        if len(found) > count:
            raise NettError(f"generate gave {len(found)} continuations at {place}, where {count} were asked for",
                            where=WHERE)  # fmt: skip
        steps = [_as_step(s, generate) for s in found]
        return [Node(node, s, (*node.path, i), state=s.state) for i, s in enumerate(steps)]

    at_once = int(getattr(generate, "at_once", 1))
    if at_once > 1 and len(live) > 1:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, live))
    return [one(asked) for asked in live]


def _as_step(given: Any, generate: Generate) -> Step:
    """A plain text as a step: of as many tokens as the generator's ``count`` tells, or else of words."""
    if isinstance(given, str):
        count = getattr(generate, "count", None)
        return Step(given, int(count(given)) if count else len(given.split()))
    if not isinstance(given, Step):
        raise NettError(f"generate gave {type(given).__name__}, not a text or a Step", where=WHERE)
    if given.tokens < 0:
        raise NettError(f"generate gave a step of {given.tokens} tokens: {given.text[:60]!r}", where=WHERE)
    return given


def _judge(nodes: Sequence[Node], reward: Reward) -> None:
    scores = [float(s) for s in reward(nodes)]
    if len(scores) != len(nodes):
        raise NettError(f"reward gave {len(scores)} numbers for {len(nodes)} nodes", where=WHERE)
    for node, score in zip(nodes, scores, strict=True):
        if not math.isfinite(score):
            raise NettError(
                f"reward gave {score} at step {node.depth} for {node.step.text[-60:]!r}",
                where=WHERE,
                hint="It must return one finite number for each node.",
            )
        node.score = score


def total(leaf: Node, how: str) -> float:
    """The score of a branch: of its last step, or the mean, product or least of all its steps."""
    scores = [n.score for n in leaf.line()[1:]]
    if how == "mean":
        return math.fsum(scores) / len(scores)
    return {"last": scores[-1], "prod": math.prod(scores), "min": min(scores)}[how]


def answers_of(leaves: Sequence[Node], *, score: str, pick: str) -> tuple[Answer, ...]:
    """The different answers, best first: by the sum of their branches' scores (majority) or by the best branch (best)."""
    groups: dict[str, list[Node]] = {}
    for leaf in leaves:
        if leaf.step.answer is not None:
            groups.setdefault(leaf.step.answer, []).append(leaf)
    found = []
    for answer, members in groups.items():
        scores = [total(leaf, score) for leaf in members]
        found.append(Answer(answer, math.fsum(scores), max(scores), tuple(members)))
    return tuple(sorted(found, key=lambda a: (-(a.weight if pick == "majority" else a.best), a.answer)))
