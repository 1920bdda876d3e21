"""What can be settled before a one-hop problem is solved: rules that lose no best plan, applied until none applies.

The problem is uncapacitated facility location whose sites are its customers too (R2D2, P03, Opt-Ret), so the rules
are those of that problem, and one for equal assets. A source that is kept in any case no longer stands in a way; a way
without sources is open whatever else is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import final

from nett.core.retention.problem import Way

Key = tuple[str, ...]  # sources that may yet be rebuilt themselves, sorted
OPEN: Key = ()
ROUNDS = 50
TWINS = 4  # assets that each asset is compared with


def reduce(ways: Iterable[Way]) -> list[Way]:
    """The ways that are left, with the sources that are left in doubt.

    A best choice among them is a best choice among all: no choice of all ways gains more.
    """
    state = _Reduction(ways)
    for _ in range(ROUNDS):
        before = state.changes
        for asset in state.assets:
            if not state.uses.get(asset):
                continue
            if not state.ways.get(asset) or state.stays(asset):
                state.keep(asset)
            elif state.closes(asset) or state.has_twin(asset):
                state.forget(asset)
        if state.changes == before:
            break
    return [replace(way, sources=key) for found in state.ways.values() for key, way in found.items()]


@final
class _Reduction:
    """Ways by target and sources, and by each source that they need."""

    def __init__(self, ways: Iterable[Way]) -> None:
        self.ways: dict[str, dict[Key, Way]] = {}
        self.uses: dict[str, set[tuple[str, Key]]] = {}
        self.changes = 0
        self._ranked: dict[str, list[Key]] = {}  # by target, the best last; may hold ways that are gone
        seen: dict[str, None] = {}
        for way in ways:
            seen.update(dict.fromkeys((way.target, *way.sources)))
            self._add(way, tuple(sorted(set(way.sources))))
        self.assets = sorted(seen)
        for target in list(self.ways):
            self._prune(target)

    def keep(self, asset: str) -> None:
        """The asset stays: no way leads to it, and where it is a source it is there in any case."""
        for key in list(self.ways.get(asset, ())):
            self._drop(asset, key)
        moved = [self._drop(target, key) for target, key in sorted(self.uses[asset])]
        for way, key in moved:
            self._add(way, tuple(s for s in key if s != asset))
        for target in sorted({way.target for way, _ in moved}):
            self._prune(target)

    def forget(self, asset: str) -> None:
        """Some best plan does not need the asset as a source."""
        for target, key in sorted(self.uses[asset]):
            self._drop(target, key)

    def closes(self, asset: str) -> bool:
        """Whether a best plan rebuilds it: its open way gains at least what all that could rest on it would lose by
        falling back to their open ways."""
        sure = self._sure(asset)
        if not sure:
            return False
        best: dict[str, float] = {}
        for target, key in self.uses[asset]:
            best[target] = max(best.get(target, 0.0), self.ways[target][key].gain)
        return sum(max(0.0, gain - self._sure(target)) for target, gain in best.items()) <= sure

    def stays(self, asset: str) -> bool:
        """Whether a best plan keeps it: targets that nothing rests on gain more by it than by any other way, and in
        all no less than rebuilding the asset gains at most."""
        most, gained = self._most(asset), 0.0
        for target, key in self.uses[asset]:
            if key == (asset,) and not self.uses.get(target):
                other = next((self.ways[target][k].gain for k in self._best_first(target) if asset not in k), 0.0)
                gained += max(0.0, self.ways[target][key].gain - other)
        return gained >= most

    def has_twin(self, asset: str) -> bool:
        """Whether another asset serves as a source wherever this one does, no worse, and may as well be kept:
        rebuilding this one from it gains no less than any way to rebuild it does. Of k equal assets k - 1 have one."""
        found = [(self._most(k[0]), k[0], w.gain) for k, w in self.ways[asset].items() if len(k) == 1]
        better = sorted((most, other) for most, other, gain in found if gain >= most)
        return any(self._replaces(other, asset) for _, other in better[:TWINS])

    def _replaces(self, other: str, asset: str) -> bool:
        for target, key in self.uses[asset]:
            if target == other:
                continue
            ways, gain = self.ways[target], self.ways[target][key].gain
            swapped = tuple(sorted({*key, other} - {asset}))
            if not any(k in ways and ways[k].gain >= gain for k in (OPEN, (other,), swapped)):
                return False
        return True

    def _sure(self, asset: str) -> float:
        way = self.ways.get(asset, {}).get(OPEN)
        return 0.0 if way is None else way.gain

    def _most(self, asset: str) -> float:
        return next((self.ways[asset][key].gain for key in self._best_first(asset)), 0.0)

    def _best_first(self, target: str) -> Iterator[Key]:
        ways = self.ways.get(target, {})
        if target not in self._ranked:
            self._ranked[target] = sorted(ways, key=lambda k: (ways[k].gain, k))
        ranked = self._ranked[target]
        while ranked and ranked[-1] not in ways:
            ranked.pop()
        return (key for key in reversed(ranked) if key in ways)

    def _add(self, way: Way, key: Key) -> None:
        found = self.ways.setdefault(way.target, {})
        if key not in found or found[key].gain < way.gain:
            found[key] = way
            self._ranked.pop(way.target, None)
        for source in key:
            self.uses.setdefault(source, set()).add((way.target, key))

    def _drop(self, target: str, key: Key) -> tuple[Way, Key]:
        self.changes += 1
        for source in key:
            self.uses[source].discard((target, key))
        return self.ways[target].pop(key), key

    def _prune(self, target: str) -> None:
        """Drop the ways that another beats with fewer sources."""
        kept: set[Key] = set()
        for key in list(self._best_first(target)):
            if OPEN in kept or (len(key) > 1 and any((s,) in kept for s in key)):
                self._drop(target, key)
            else:
                kept.add(key)
