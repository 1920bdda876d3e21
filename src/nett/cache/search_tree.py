"""A tree of reasoning steps: what generators give, what rewards see, and the tokens that a cache holds for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, final

import numpy as np


@final
@dataclass(frozen=True)
class Step:
    """One continuation. ``tokens``: of this step alone; ``done``: nothing follows; ``answer``: what is voted on where it is
    done (None: the branch came to none); ``state``: whatever the generator wants to find at the node again."""

    text: str
    tokens: int
    done: bool = False
    answer: str | None = None
    state: Any = None


@final
@dataclass(eq=False)
class Node:
    """A step in its place. ``path``: the rank among its siblings at each depth, from the root (which has an empty one)."""

    parent: Node | None
    step: Step
    path: tuple[int, ...] = ()
    score: float = nan
    state: Any = None

    @property
    def depth(self) -> int:
        return len(self.path)

    def line(self) -> list[Node]:
        """From the root to this node."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    @property
    def text(self) -> str:
        """Prompt and all steps."""
        return "".join(n.step.text for n in self.line())


Generate = Callable[[Node, int, np.random.Generator], Sequence[Step]]
Reward = Callable[[Sequence[Node]], Sequence[float]]
Embed = Callable[[Sequence[str]], Any]


def unique_nodes(leaves: Iterable[Node]) -> list[Node]:
    """The leaves and all their ancestors, each once, parents first."""
    found: dict[int, Node] = {}
    for leaf in leaves:
        for node in leaf.line():
            found.setdefault(id(node), node)
    return list(found.values())


def kv_size(leaves: Iterable[Node]) -> int:
    """Tokens that a cache with shared prefixes holds for these leaves: their own, and those of each ancestor once."""
    return sum(node.step.tokens for node in unique_nodes(leaves))
