"""Retention by taking the largest gain first, then exchanging what was taken for more: fast, legal, near the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from nett.core.retention.problem import Problem, Way

SWEEPS = 8  # rounds of exchanges; each must gain something, so few are ever needed


def greedy(problem: Problem) -> list[Way]:
    """The best of several orders of taking ways, each improved by exchanges."""
    count: dict[str, int] = {}
    for way in problem.ways:
        for source in way.sources:
            count[source] = count.get(source, 0) + 1
    orders = (
        sorted(problem.ways, key=lambda w: (-w.gain, w.seconds, w.target, w.sources)),
        # An asset that many others rest on is better kept: its own way comes last.
        sorted(problem.ways, key=lambda w: (count.get(w.target, 0), -w.gain, w.target, w.sources)),
    )
    made = [_improved(problem, order) for order in orders]
    return max(made, key=lambda ways: sum(w.gain for w in ways))


def _improved(problem: Problem, order: Sequence[Way]) -> list[Way]:
    plan = Plan(problem)
    for way in order:
        if way.target not in plan.taken:
            plan.take(way)
    for _ in range(SWEEPS):
        if not sum(_exchange(plan, way) for way in order):
            break
    return list(plan.taken.values())


def _exchange(plan: Plan, way: Way) -> bool:
    """Take ``way`` in place of what stands against it, where that gains something."""
    before = plan.taken.get(way.target)
    if before is way or (before is not None and before.gain >= way.gain):
        return False
    against = [] if before is None else [before]
    if plan.limits.hops <= 1:  # a target must rest on kept assets, and nothing may rest on it
        against += [plan.taken[s] for s in way.sources if s in plan.taken]
        against += [plan.taken[u] for u in plan.users[way.target]]
    against = list({id(w): w for w in against}.values())
    gained = way.gain - sum(w.gain for w in against)
    if gained <= 0:
        return False
    for old in against:
        plan.leave(old)
    if plan.take(way):
        for old in against:  # perhaps by another way than before
            for other in plan.problem.targets[old.target]:
                if old.target not in plan.taken and plan.take(other):
                    break
        return True
    for old in reversed(against):
        plan.take(old)
    return False


@final
class Plan:
    """Ways taken so far, and for each asset how deep it lies and how long it takes."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.limits = problem, problem.limits
        self.taken: dict[str, Way] = {}
        self.users: dict[str, list[str]] = {asset: [] for asset in problem.assets}
        self._depth = dict.fromkeys(problem.assets, 0)
        self._spent = dict.fromkeys(problem.assets, 0.0)

    def take(self, way: Way) -> bool:
        """Take a way if the result is legal; its target must be kept so far."""
        depth = 1 + max((self._depth[s] for s in way.sources), default=0)
        spent = way.seconds + max((self._spent[s] for s in way.sources), default=0.0)
        if depth > self.limits.hops or spent > self.limits.seconds:
            return False
        above = self._above(way.target)
        if any(source in above for source in way.sources):
            return False
        # What rests on the target moves down with it.
        moved = {way.target: (depth, spent)}
        for asset in self._in_order(above, way.target):
            using = self.taken[asset]
            places = [moved.get(s, (self._depth[s], self._spent[s])) for s in using.sources]
            new = (1 + max(deep for deep, _ in places), using.seconds + max(long for _, long in places))
            if new[0] > self.limits.hops or new[1] > self.limits.seconds:
                return False
            moved[asset] = new
        self.taken[way.target] = way
        for source in way.sources:
            self.users[source].append(way.target)
        for asset, (deep, long) in moved.items():
            self._depth[asset], self._spent[asset] = deep, long
        return True

    def leave(self, way: Way) -> None:
        """Keep the target of a way after all."""
        del self.taken[way.target]
        for source in way.sources:
            self.users[source].remove(way.target)
        self._depth[way.target], self._spent[way.target] = 0, 0.0
        for asset in self._in_order(self._above(way.target), way.target):
            using = self.taken[asset]
            self._depth[asset] = 1 + max(self._depth[s] for s in using.sources)
            self._spent[asset] = using.seconds + max(self._spent[s] for s in using.sources)

    def _above(self, asset: str) -> set[str]:
        """``asset`` and everything that rests on it."""
        found, todo = {asset}, [asset]
        while todo:
            for user in self.users[todo.pop()]:
                if user not in found:
                    found.add(user)
                    todo.append(user)
        return found

    def _in_order(self, above: set[str], first: str) -> list[str]:
        """``above`` without ``first``, sources before those that rest on them."""
        return sorted(above - {first}, key=lambda a: self._depth[a])
