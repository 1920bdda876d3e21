"""The sampled anti-join (R2D2, P03, section 4.3): a few rows of each child, which its parents must have."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.lake.comparing import how_compared
from nett.lake.protocol import Engine, Hashes, Key
from nett.lake.table import Table
from nett.lake.verifying import Pair

LEAST, MOST = 16, 4096  # sampled rows
Each = Callable[[list[Table], str, Callable[[Table], None]], Iterable[Table]]


@final
@dataclass(frozen=True)
class Sampling:
    """``rows`` of each child are looked for, in ``columns`` of its columns (all where None). Without ``rows``: as many
    as find every pair that lacks at least a share ``epsilon`` of its rows with probability 1 - ``delta``, taken over
    all pairs together."""

    epsilon: float = 0.05
    delta: float = 0.01
    rows: int | None = None
    columns: int | None = None
    seed: int = 0

    def size(self, pairs: int) -> int:
        """t >= ln(pairs / delta) / -ln(1 - epsilon): a pair with a share c of its rows in the parent passes with
        c^t at most. A power of two, so that one more table in the lake seldom asks for other samples of all."""
        if self.rows is not None:
            return self.rows
        wanted = math.log(max(1, pairs) / self.delta) / -math.log1p(-self.epsilon)
        return min(MOST, max(LEAST, 1 << (math.ceil(wanted) - 1).bit_length()))


@final
class Samples:
    """Samples of children and what parents have of them."""

    def __init__(self, engine: Engine, sampling: Sampling, least: float, *, text: bool) -> None:
        self.engine, self.sampling, self.least, self.text = engine, sampling, least, text

    def refuted(self, pairs: Sequence[Pair], each: Each) -> tuple[set[Pair], set[Table]]:
        """(pairs of which rows are lacking, tables that cannot be read). Every child is read once and every parent once;
        ``each(tables, what, act)`` does so and gives those that fail."""
        keys = self._keys(pairs)
        count = self.sampling.size(len(pairs))
        wanted: dict[Table, dict[Key, None]] = {}
        for (child, _), key in keys.items():
            wanted.setdefault(child, {})[key] = None
        samples: dict[tuple[Table, Key], Hashes] = {}

        def take(child: Table) -> None:
            some = list(wanted[child])
            for key, hashes in zip(some, self.engine.sample(child, some, count), strict=True):
                samples[child, key] = hashes

        broken = set(each(list(wanted), "sampling rows", take))
        by_parent: dict[Table, dict[Key, list[Table]]] = {}
        for (child, parent), key in keys.items():
            if child not in broken:
                by_parent.setdefault(parent, {}).setdefault(key, []).append(child)
        gone: set[Pair] = set()

        def look(parent: Table) -> None:
            asked = by_parent[parent]
            rows = {key: np.unique(np.concatenate([samples[c, key] for c in some])) for key, some in asked.items()}
            there = self.engine.present(parent, rows)
            for key, children in asked.items():
                for child in children:
                    mine = samples[child, key]
                    if mine.size and 1 - np.isin(mine, there[key]).sum() / mine.size > self._tolerated(mine.size):
                        gone.add((child, parent))

        broken |= set(each(list(by_parent), "looking for sampled rows", look))
        return gone, broken

    def _keys(self, pairs: Sequence[Pair]) -> dict[Pair, Key]:
        """Of each pair the columns that are hashed, each as the two are compared."""
        chance = random.Random(self.sampling.seed)
        drawn: dict[Table, list[str]] = {}
        found: dict[Pair, Key] = {}
        for child, parent in pairs:
            if child not in drawn:
                names = [c.name for c in child.columns]
                if self.sampling.columns is not None:
                    names = chance.sample(names, min(len(names), self.sampling.columns))
                drawn[child] = sorted(names)  # tables that order their columns otherwise have one key
            found[child, parent] = tuple(
                (n, how_compared(child.column(n), parent.column(n), text=self.text)) for n in drawn[child]
            )
        return found

    def _tolerated(self, size: int) -> float:
        """The share of a sample that may be missing: none, or with ``least`` below 1 what chance makes of it."""
        if self.least >= 1:
            return 0.0
        lost = 1 - self.least
        return lost + 5 * math.sqrt(lost * (1 - lost) / size)
