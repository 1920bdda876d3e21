"""Retention where every asset can be rebuilt from one other only, and never from itself in a ring: exact, by a
dynamic programme over the forest."""

from __future__ import annotations

from nett.core.retention.problem import Problem, Way

MOST_STATES = 2_000_000  # assets times depths


def is_forest(problem: Problem) -> bool:
    """Whether the ways make a forest that is small enough: one way an asset, of one source, and no ring."""
    if any(len(ways) > 1 or len(ways[0].sources) != 1 for ways in problem.targets.values()):
        return False
    depths = _depths(problem)
    return depths is not None and sum(1 + d for d in depths.values()) <= MOST_STATES


def solve_forest(problem: Problem) -> list[Way]:
    """The best legal choice.

    f(v, h) is the most that v's subtree frees if v lies h hops from the asset that it is rebuilt from at last; the
    seconds follow from v and h, since there is one way up. f(v, h) = sum over children c of
    max(f(c, 0), gain(c) + f(c, h + 1) where that keeps the limits).
    """
    depths = _depths(problem)
    assert depths is not None
    way = {target: ways[0] for target, ways in problem.targets.items()}
    children: dict[str, list[str]] = {a: [] for a in problem.assets}
    for target, one in way.items():
        children[one.sources[0]].append(target)
    deepest = sorted(problem.assets, key=lambda a: -depths[a])
    seconds = {a: _seconds_up(a, way, problem) for a in problem.assets}  # by hops, as far as the limits allow
    best: dict[str, list[float]] = {}
    rebuilt: dict[str, list[bool]] = {}  # of a child, by the hops of its parent
    for asset in deepest:
        most = len(seconds[asset])
        best[asset] = [0.0] * most
        for child in children[asset]:
            allowed = len(seconds[child]) - 1
            rebuilt[child] = [
                h < allowed and way[child].gain + best[child][h + 1] > best[child][0] for h in range(most)
            ]
            for h in range(most):
                best[asset][h] += way[child].gain + best[child][h + 1] if rebuilt[child][h] else best[child][0]
    chosen: list[Way] = []
    hops = dict.fromkeys(problem.assets, 0)
    for asset in reversed(deepest):
        if asset in way and rebuilt[asset][hops[way[asset].sources[0]]]:
            hops[asset] = hops[way[asset].sources[0]] + 1
            chosen.append(way[asset])
    return chosen


def _seconds_up(asset: str, way: dict[str, Way], problem: Problem) -> list[float]:
    """Seconds to rebuild ``asset`` over 0, 1, 2, … hops, while within the limits."""
    found = [0.0]
    at = asset
    while at in way and len(found) <= problem.hops and found[-1] + way[at].seconds <= problem.limits.seconds:
        found.append(found[-1] + way[at].seconds)
        at = way[at].sources[0]
    return found


def _depths(problem: Problem) -> dict[str, int] | None:
    """How far each asset lies from the root of its tree; None where there is a ring."""
    parent = {target: ways[0].sources[0] for target, ways in problem.targets.items()}
    depths: dict[str, int] = {}
    for asset in problem.assets:
        path: list[str] = []
        seen: set[str] = set()
        while asset not in depths and asset in parent:
            if asset in seen:
                return None
            seen.add(asset)
            path.append(asset)
            asset = parent[asset]
        depths.setdefault(asset, 0)
        for one in reversed(path):
            depths[one] = depths[parent[one]] + 1
    return depths
