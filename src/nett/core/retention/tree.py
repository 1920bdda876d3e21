"""Dyn-Lin: one-hop retention on lines and trees, exact in O(assets times depth) (R2D2, P03).

A line may be closed under transitivity, as containment is: an asset may be rebuilt from its parent, from the parent's
parent and so on, as long as a nearer one is no worse than one further up. Then only the nearest kept ancestor counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from nett.core.retention.problem import Problem, Way

MOST_STATES = 2_000_000  # assets times depths


def not_a_tree(problem: Problem) -> str | None:
    """What keeps the ways from being those of lines and trees, in words; None where they are."""
    for target, ways in problem.targets.items():
        for way in ways:
            if len(way.sources) > 1:
                return f"{target!r} is rebuilt from several at once ({_few(way.sources)})"
    up = _parents(problem)
    depths: dict[str, int] = {}
    for asset in problem.assets:
        path: list[str] = []
        seen: set[str] = set()
        at: str | None = asset
        while at is not None and at not in depths:
            if at in seen:
                return f"the ways run in a ring ({' <- '.join([*path[path.index(at) :], at])})"
            seen.add(at)
            path.append(at)
            at = up.get(at)
        above = -1 if at is None else depths[at]
        for one in reversed(path):
            above += 1
            depths[one] = above
    if sum(1 + depth for depth in depths.values()) > MOST_STATES:
        return f"its {len(depths):,} assets lie too deep for the programme (more than {MOST_STATES:,} states)"
    for target, ways in problem.targets.items():
        above_it, gain = up.get(target), 0.0
        sources = {w.sources[0]: w.gain for w in reversed(ways) if w.sources}
        last = max(sources.values(), default=0.0)
        run = len(sources)
        while run:
            gain = sources.get(above_it, 0.0) if above_it is not None else 0.0
            if above_it is None or not 0 < gain <= last:
                return f"{target!r} has ways from {_few(sources)}, which do not lie on one line above it"
            last, above_it, run = gain, up.get(above_it), run - 1
    return None


def solve_tree(problem: Problem) -> list[Way]:
    """The best legal choice of a problem of which :func:`not_a_tree` says None.

    f(v, a) is the most that v's subtree frees if a is the nearest ancestor of v that is kept:
    f(v, a) = max(sum over children c of f(c, v), gain of v from a + sum over children c of f(c, a)), the second where
    there is such a way.
    """
    up = _parents(problem)
    children: dict[str, list[str]] = {a: [] for a in problem.assets}
    for asset, parent in up.items():
        children[parent].append(asset)
    order = [a for a in problem.assets if a not in up]
    lines: dict[str, list[str]] = {a: [] for a in order}  # the ancestors, nearest first
    for asset in order:
        for child in children[asset]:
            lines[child] = [asset, *lines[asset]]
            order.append(child)
    ways = {
        t: {w.sources[0] if w.sources else None: w for w in reversed(found)} for t, found in problem.targets.items()
    }

    def best_way(asset: str, kept: str | None) -> Way | None:
        found = ways.get(asset, {})
        return max((found[s] for s in (kept, None) if s in found), key=lambda w: w.gain, default=None)

    best: dict[tuple[str, str | None], float] = {}
    rebuilt: dict[tuple[str, str | None], bool] = {}
    for asset in reversed(order):
        keeps = sum(best[child, asset] for child in children[asset])
        for kept in (*lines[asset], None):
            way = best_way(asset, kept)
            drops = way.gain + sum(best[child, kept] for child in children[asset]) if way is not None else keeps
            best[asset, kept] = max(keeps, drops)
            rebuilt[asset, kept] = way is not None and drops > keeps
    chosen: list[Way] = []
    nearest: dict[str, str | None] = {}
    for asset in order:
        kept = nearest.get(asset)
        if rebuilt[asset, kept]:
            way = best_way(asset, kept)
            assert way is not None
            chosen.append(way)
        else:
            kept = asset
        nearest.update(dict.fromkeys(children[asset], kept))
    return chosen


def _parents(problem: Problem) -> dict[str, str]:
    """The source that each asset is best rebuilt from."""
    found: dict[str, str] = {}
    for target, ways in problem.targets.items():
        for way in ways:
            if way.sources:
                found[target] = way.sources[0]
                break
    return found


def _few(names: Iterable[str]) -> str:
    words = [repr(n) for n in names]
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
