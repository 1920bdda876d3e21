"""Containment graphs as lakes have them, with prices, for the planner: components of copies, projections and filters,
closed under transitivity as containment is. Made from a seed; no table is behind them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from nett.core.edge import Edge

STORE, MAINTAIN, READ, WRITE = 0.023, 0.005, 0.005, 0.01  # money a GB: a month, an upkeep run, a GB read, a GB written
RATE = 0.2  # GB a second


@dataclass
class Lake:
    """``above``: what each table is contained in. ``size`` in GB; reads and upkeep runs a month."""

    size: dict[str, float] = field(default_factory=dict)
    reads: dict[str, float] = field(default_factory=dict)
    upkeep: dict[str, float] = field(default_factory=dict)
    above: dict[str, set[str]] = field(default_factory=dict)

    def keeping(self, v: str) -> float:
        return self.size[v] * (STORE + MAINTAIN * self.upkeep[v])

    def gain(self, v: str, *sources: str) -> float:
        """P03, Opt-Ret: C_s S_v + C_m S_v f_v - A_v (C_r S_u + C_w S_v)."""
        read = sum(self.size[u] for u in sources)
        return self.keeping(v) - self.reads[v] * (READ * read + WRITE * self.size[v])

    def edge(self, v: str, *sources: str) -> Edge:
        moved = sum(self.size[u] for u in sources) + self.size[v]
        return Edge("contained", v, sources, None, round(self.size[v] * 1e9), moved / RATE, 0.0, "exact")

    def worth(self, edge: Edge) -> float:
        return self.gain(edge.target, *edge.sources)

    def edges(self) -> list[Edge]:
        return [self.edge(v, u) for v, above in self.above.items() for u in sorted(above)]

    def sizes(self) -> dict[str, int]:
        return {v: round(s * 1e9) for v, s in self.size.items()}


def grow(lake: Lake, count: int, chance: random.Random, *, equal: float = 0.25, deep: float = 0.5) -> None:
    """Add a component. ``equal``: share of tables that are copies, a third of them in another format; ``deep``: how
    often a table is made from the one before it rather than from any. One in five lies in a second table too."""
    names = [f"t{len(lake.size) + i}" for i in range(count)]
    copies: dict[str, set[str]] = {}
    for i, v in enumerate(names):
        lake.reads[v], lake.upkeep[v] = chance.lognormvariate(0, 1.5), chance.choice([0, 1, 4, 12])
        if not i:
            lake.size[v], lake.above[v], copies[v] = chance.lognormvariate(0, 2), set(), {v}
            continue
        u = names[i - 1] if chance.random() < deep else names[chance.randrange(i)]
        if chance.random() < equal:
            lake.size[v] = lake.size[u] * chance.choice([1.0, 1.0, chance.uniform(0.5, 2.0)])
            copies[u].add(v)
            copies[v] = copies[u]
            lake.above[v] = {x for x in lake.above[u] if x not in copies[u]}
        else:
            lake.size[v] = lake.size[u] * chance.uniform(0.4, 1.0)
            copies[v] = {v}
            lake.above[v] = copies[u] | lake.above[u]
            if chance.random() < 0.2:
                w = names[chance.randrange(i)]
                lake.above[v] |= copies[w] | lake.above[w]
    for v in names:  # a copy made late is above and below all that its twins are
        for u in list(lake.above[v]):
            lake.above[v] |= copies[u]
        lake.above[v] = (lake.above[v] | copies[v]) - {v}


def grown(components: Sequence[int], seed: int) -> Lake:
    lake, chance = Lake(), random.Random(seed)
    for count in components:
        grow(lake, count, chance, equal=chance.uniform(0.1, 0.5), deep=chance.uniform(0.0, 0.8))
    return lake


def real_sizes(count: int, seed: int) -> list[int]:
    """Component sizes of a real lake: one of 1,500, a few of 100 to 500, many of 2 to 40, the rest alone."""
    chance = random.Random(seed)
    found = [1500, *(chance.randint(100, 500) for _ in range(5))]
    while sum(found) < 0.65 * count:
        found.append(round(2 * 20 ** chance.random() ** 2))
    return found + [1] * (count - sum(found))
