"""One-hop retention by flips: keep one asset more, or rebuild one more, with all that follows, while that gains.

Started with everything kept it is greedy, the largest gain first, and improves itself by exchanges; started from the
relaxation's answer it rounds that to a legal plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from nett.core.retention.problem import Problem, Way

SWEEPS = 30  # each must gain something, so few are ever needed
LEAST = 1e-12  # of the largest gain: less is rounding


def from_all_kept(problem: Problem) -> list[Way]:
    """Greedy: the largest gain first where nothing rests on the asset, then flips."""
    state = Flips(problem)
    for way in sorted(problem.ways, key=lambda w: (-w.gain, w.seconds, w.target, w.sources)):
        if way.target not in state.way and not state.users[way.target] and state.open(way):
            state.assign(way.target, way)
    state.improve()
    return list(state.way.values())


def from_kept(problem: Problem, kept: Iterable[str]) -> list[Way]:
    """As near to keeping ``kept`` and no other as is legal, then flips."""
    state = Flips(problem)
    stay = set(kept)
    for target, ways in problem.targets.items():
        if target not in stay:
            found = next((w for w in ways if stay.issuperset(w.sources)), None)
            if found is not None:
                state.assign(target, found)
    state.improve()
    return list(state.way.values())


def rounded(problem: Problem, kept: Mapping[str, float]) -> list[Way]:
    """The best of the plans near a relaxed one that says how far each asset is kept, from 0 to 1."""
    made = [from_kept(problem, (a for a, x in kept.items() if x >= cut)) for cut in (0.5, 0.2, 0.05)]
    return max(made, key=lambda ways: sum(w.gain for w in ways))


@final
class Flips:
    """A legal plan that changes: the way of each asset that is rebuilt, and who rests on each that is kept."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.way: dict[str, Way] = {}
        self.users: dict[str, set[str]] = {a: set() for a in problem.assets}
        self.uses: dict[str, list[Way]] = {a: [] for a in problem.assets}
        for ways in problem.targets.values():
            for way in ways:
                for source in way.sources:
                    self.uses[source].append(way)
        self.least = LEAST * max((w.gain for w in problem.ways), default=0.0)
        self._log: list[tuple[str, Way | None]] = []

    def open(self, way: Way) -> bool:
        return self.way.keys().isdisjoint(way.sources)

    def assign(self, asset: str, way: Way | None) -> None:
        """Rebuild the asset by a way, or keep it."""
        before = self.way.pop(asset, None)
        self._log.append((asset, before))
        for source in before.sources if before is not None else ():
            self.users[source].discard(asset)
        if way is not None:
            self.way[asset] = way
            for source in way.sources:
                self.users[source].add(asset)

    def improve(self) -> None:
        """Flip every asset in turn until a round gains nothing."""
        for _ in range(SWEEPS):
            changed = 0
            for asset in self.problem.assets:
                self._log.clear()
                gained = self._keep(asset) if asset in self.way else self._rebuild(asset)
                if gained > self.least:
                    changed += 1
                else:
                    self._undo()
            if not changed:
                break

    def _undo(self) -> None:
        for asset, before in reversed(self._log[:]):
            self.assign(asset, before)
        self._log.clear()

    def _best(self, asset: str, without: str | None = None) -> Way | None:
        """The best way that is open while ``without`` is rebuilt."""
        rebuilt = self.way
        for way in self.problem.targets.get(asset, ()):
            for source in way.sources:
                if source in rebuilt or source == without:
                    break
            else:
                return way
        return None

    def _rebuild(self, asset: str) -> float:
        """Rebuild a kept asset; what rested on it takes its next best way, or is kept."""
        found = self._best(asset)
        if found is None:
            return 0.0
        gained = found.gain
        moved: list[tuple[str, Way | None]] = []
        for user in sorted(self.users[asset]):
            other = self._best(user, asset)
            gained += (other.gain if other is not None else 0.0) - self.way[user].gain
            moved.append((user, other))
        if gained <= self.least:
            return 0.0
        for user, other in moved:
            self.assign(user, other)
        self.assign(asset, found)
        return gained

    def _keep(self, asset: str) -> float:
        """Keep an asset that is rebuilt; whatever can do better from it does, and the assets that are thereby left
        without users, or that it can stand in for, are rebuilt where that gains."""
        before = self.way[asset]
        gained = -before.gain
        self.assign(asset, None)
        left = dict.fromkeys(before.sources)
        for way in self.uses[asset]:
            if not self.open(way) or self.users[way.target]:
                left[way.target] = None
                continue
            now = self.way.get(way.target)
            if now is None or now.gain < way.gain:
                gained += way.gain - (now.gain if now is not None else 0.0)
                left.update(dict.fromkeys(now.sources if now is not None else ()))
                self.assign(way.target, way)
        for other in left:
            if other != asset and other not in self.way:
                gained += self._rebuild(other)
        return gained
