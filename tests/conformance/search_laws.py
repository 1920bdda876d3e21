"""Laws of what searches (kind ``make`` of the cache room): the same seed gives the same search, a search is within its width,
its ledger is what its tree holds, and where sharing is all that counts it holds no more than REBASE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nett.cache.countdown import Countdown, problem
from nett.cache.search_tree import Node, Step
from nett.core.registry import Card

Law = Callable[[Card, Path], None]
WIDTH = 12


class Watched:
    """A problem of the built-in task, and all nodes that a search of it made, by their depth."""

    def __init__(self, number: int = 0) -> None:
        self.task = Countdown(*problem(11, number), noise=0.4)
        self.nodes: list[list[Node]] = []
        self.asked: list[int] = []

    def generate(self, node: Node, count: int, rng: np.random.Generator) -> list[Step]:
        self.asked += [0] * (node.depth + 1 - len(self.asked))
        self.asked[node.depth] += count
        return self.task.generate(node, count, rng)

    def reward(self, nodes: Sequence[Node]) -> list[float]:
        self.nodes.append(list(nodes))
        return self.task.reward(nodes)

    def searched(self, card: Card, **how: Any) -> Any:
        return card.load()(self.task.prompt, self.generate, self.reward, **{"width": WIDTH, "depth": 8, **how})


def told(found: Any) -> Any:
    return found.answer, found.ledger, [(a.answer, a.weight) for a in found.answers], [n.text for n in found.leaves]


def same_seed_same_search(card: Card, folder: Path) -> None:
    first, second, other = (told(Watched().searched(card, seed=s)) for s in (3, 3, 4))
    assert first == second != other


def width_is_respected(card: Card, folder: Path) -> None:
    for number in range(3):
        watched = Watched(number)
        watched.searched(card)
        left = WIDTH
        for asked, made in zip(watched.asked, watched.nodes, strict=True):
            assert asked <= left and len(made) == asked
            left -= sum(n.step.done for n in made)


def the_ledger_is_what_the_tree_holds(card: Card, folder: Path) -> None:
    """Counted again from nothing but the nodes: each different node above or at a step's leaves, once."""
    watched = Watched(1)
    ledger = watched.searched(card).ledger
    held = []
    for made in watched.nodes:
        known: dict[tuple[int, ...], int] = {}
        for leaf in made:
            node: Node | None = leaf
            while node is not None:
                known[node.path] = node.step.tokens
                node = node.parent
        held.append(sum(known.values()))
    assert ledger["kv_tokens"] == sum(held) and ledger["kv_peak"] == max(held) and ledger["steps"] == len(held)
    assert ledger["generated"] == sum(n.step.tokens for made in watched.nodes for n in made)


def a_high_price_holds_no_more_than_rebase(card: Card, folder: Path) -> None:
    """Steps of equal length, none of which ends: with one branch at every step, no tree of this width is smaller."""

    def generate(node: Node, count: int, rng: np.random.Generator) -> list[Step]:
        return [Step(f"{x} ", 3) for x in rng.random(count)]

    def reward(nodes: Sequence[Node]) -> list[float]:
        return [hash(n.path) % 97 / 97 for n in nodes]

    for seed in range(3):
        sizes = [
            card.load()("go", generate, reward, width=WIDTH, depth=6, seed=seed, **how).ledger["kv_tokens"]
            for how in ({"by": "ets", "sharing": 1000.0, "coverage": 0.0}, {"by": "rebase"})
        ]
        assert sizes[0] <= sizes[1]
        assert sizes[0] == sum(1 + 3 * i + 3 * WIDTH for i in range(6))


LAWS: list[Law] = [
    same_seed_same_search,
    width_is_respected,
    the_ledger_is_what_the_tree_holds,
    a_high_price_holds_no_more_than_rebase,
]
