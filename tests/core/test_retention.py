"""The planner: what it takes keeps the limits, and its bound is one."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.edge import Edge
from nett.core.errors import UsageError
from nett.core.retention import Limits, Retention, plan_retention
from nett.core.retention.forest import is_forest, solve_forest
from nett.core.retention.ilp import solve_ilp
from nett.core.retention.problem import parts, usable


def edge(target: str, *sources: str, freed: int = 10, seconds: float | None = 1.0, error: float | None = 0.0) -> Edge:
    return Edge("x", target, sources, "m", freed, seconds, error, "exact")


SIZES = dict.fromkeys("abcdef", 100)


def test_takes_the_larger_and_keeps_the_source() -> None:
    found = plan_retention(SIZES, [edge("b", "a", freed=30), edge("b", "c", freed=40), edge("a", "b", freed=35)])
    assert [(e.target, e.sources) for e in found.taken] == [("b", ("c",))]
    assert found.kept == ("a", "c", "d", "e", "f") and found.freed == found.bound == 40 and found.gap == 0.0
    rough = plan_retention(SIZES, [edge("b", "c", freed=40), edge("a", "b", freed=35)], solver="greedy")
    assert (rough.freed, rough.bound) == (40, 75) and rough.gap == pytest.approx(1 - 40 / 75)


def test_hops_and_seconds() -> None:
    chain = [edge("b", "a", freed=9), edge("c", "b", freed=8), edge("d", "c", freed=7)]
    assert plan_retention(SIZES, chain).freed == 16  # b and d: at one hop, c must stay
    assert plan_retention(SIZES, chain, Limits(hops=3)).freed == 24
    assert plan_retention(SIZES, chain, Limits(hops=3, seconds=2.0)).freed == 17
    assert plan_retention(SIZES, chain, Limits(hops=3, seconds=0.5)).freed == 0


def test_error_limit_and_what_is_unknown_of_an_edge() -> None:
    assert plan_retention(SIZES, [edge("b", "a", error=0.1)]).freed == 0
    assert plan_retention(SIZES, [edge("b", "a", error=0.1)], Limits(error=0.1)).freed == 10
    assert plan_retention(SIZES, [edge("b", "a", error=None, seconds=None)], Limits(seconds=0)).freed == 10


def test_nobody_is_rebuilt_from_itself() -> None:
    assert plan_retention(SIZES, [edge("a", "a"), edge("b", "b", "c")], Limits(hops=9)).freed == 0
    ring = [edge("b", "a"), edge("c", "b"), edge("a", "c")]
    assert plan_retention(SIZES, ring, Limits(hops=9)).freed == 20


def test_nothing_to_do() -> None:
    assert plan_retention(SIZES, []) == Retention((), tuple("abcdef"), 0, 0)
    assert plan_retention({}, []).gap == 0.0


def test_strangers_are_refused() -> None:
    with pytest.raises(UsageError, match="'z', which is not among the assets"):
        plan_retention(SIZES, [edge("b", "z")])


def keeps_the_limits(taken: Any, limits: Limits) -> bool:
    """Independent check: one edge a target, no ring, hops and seconds along the longest way within limits."""
    by_target = {e.target: e for e in taken}
    if len(by_target) < len(taken):
        return False

    def cost(asset: str, seen: tuple[str, ...]) -> tuple[int, float]:
        if asset in seen:
            raise RecursionError
        if asset not in by_target:
            return 0, 0.0
        below = [cost(s, (*seen, asset)) for s in by_target[asset].sources]
        return 1 + max((h for h, _ in below), default=0), (by_target[asset].seconds or 0) + max(
            (t for _, t in below), default=0.0
        )

    try:
        costs = [cost(e.target, ()) for e in taken]
    except RecursionError:
        return False
    return all(
        h <= limits.hops and t <= limits.seconds and (e.error or 0) <= limits.error
        for (h, t), e in zip(costs, taken, strict=True)
    )


_edge = st.builds(
    lambda t, s, f, seconds, error: edge(t, *s, freed=f, seconds=seconds, error=error),
    st.sampled_from("abcdef"),
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=2, unique=True),
    st.integers(0, 20),
    st.sampled_from([None, 0.0, 1.0, 2.0]),
    st.sampled_from([None, 0.0, 0.5]),
)
_limits = st.builds(
    Limits, st.sampled_from([0.0, 1.0, 3.0, float("inf")]), st.integers(1, 4), st.sampled_from([0.0, 0.5])
)


@given(st.lists(_edge, max_size=7), _limits)
def test_any_graph(edges: list[Edge], limits: Limits) -> None:
    """The plan is legal, its sums are right, and no legal choice of edges (all are tried) frees more than the bound."""
    found = plan_retention(SIZES, edges, limits)
    assert keeps_the_limits(found.taken, limits) and set(found.taken) <= set(edges)
    assert found.freed == sum(e.bytes_freed for e in found.taken) <= found.bound
    assert set(found.kept) == set(SIZES) - {e.target for e in found.taken}
    best = 0
    for count in range(len(edges) + 1):
        for choice in itertools.combinations(edges, count):
            freed = sum(e.bytes_freed for e in choice)
            if freed > best and keeps_the_limits(choice, limits) and not any(e.target in e.sources for e in choice):
                best = freed
    assert found.freed == best == found.bound  # parts this small are solved exactly
    rough = plan_retention(SIZES, edges, limits, solver="greedy")
    assert keeps_the_limits(rough.taken, limits) and (best > 0) <= rough.freed <= best <= rough.bound
    # nothing more could simply be added
    for one in edges:
        if one not in rough.taken and one.target not in one.sources and one.bytes_freed:
            assert not keeps_the_limits((*rough.taken, one), limits)


def tree(count: int, seed: int) -> list[Edge]:
    """Every asset but the first from one before it."""
    chance = random.Random(seed)
    return [
        edge(f"v{i}", f"v{chance.randrange(i)}", freed=chance.randint(1, 50), seconds=chance.choice([0.5, 1.0, 2.0]))
        for i in range(1, count)
    ]


@pytest.mark.parametrize("limits", [Limits(2.5, 3), Limits(hops=1), Limits(3.0, float("inf"))])
def test_the_forest_programme_and_the_integer_programme_agree(limits: Limits) -> None:
    for seed in range(6):
        edges = tree(14, seed)
        (part,) = parts(usable(edges, limits), limits)
        assert is_forest(part)
        by_tree, by_solver = solve_forest(part), solve_ilp(part, 30.0)
        assert keeps_the_limits([w.edge for w in by_tree], limits) and by_solver.ways is not None
        assert sum(w.gain for w in by_tree) == sum(w.gain for w in by_solver.ways) == pytest.approx(by_solver.bound)


def test_without_limits_it_is_the_best_arborescence() -> None:
    """Chains without limits: all but the roots of a minimum-storage arborescence (Edmonds), by networkx."""
    import networkx

    chance = random.Random(3)
    names = [f"v{i}" for i in range(12)]
    edges = [
        edge(t, s, freed=chance.randint(1, 90)) for t in names for s in chance.sample(names, 4) if s != t
    ]  # fmt: skip
    graph = networkx.DiGraph([("nothing", n, {"weight": 100}) for n in names])
    for e in edges:
        graph.add_edge(e.sources[0], e.target, weight=100 - e.bytes_freed)
    stored = networkx.minimum_spanning_arborescence(graph).size(weight="weight")
    found = plan_retention(dict.fromkeys(names, 100), edges, Limits(hops=float("inf")))
    assert 100 * len(names) - found.freed == stored and found.gap == 0.0


def test_more_room_never_frees_less() -> None:
    sizes = dict.fromkeys([f"v{i}" for i in range(30)], 100)
    edges = tree(30, 1)
    freed = [plan_retention(sizes, edges, Limits(hops=h)).freed for h in (1, 2, 3, 9)]
    assert freed == sorted(freed) and freed[0] < freed[-1]
    freed = [plan_retention(sizes, edges, Limits(s, 9)).freed for s in (0.5, 1.0, 2.0, 9.0)]
    assert freed == sorted(freed)


def test_the_price_of_rebuilding() -> None:
    slow, fast = edge("b", "a", freed=50, seconds=10.0), edge("b", "c", freed=30, seconds=1.0)
    assert plan_retention(SIZES, [slow, fast]).taken == (slow,)
    assert plan_retention(SIZES, [slow, fast], Limits(byte_seconds=4.0)).taken == (fast,)
    assert plan_retention(SIZES, [slow, fast], Limits(byte_seconds=40.0)).taken == ()


def test_thousands_of_assets_take_seconds() -> None:
    chance = random.Random(0)
    names = [f"v{i}" for i in range(3000)]
    edges = [edge(t, s, freed=chance.randint(1, 99)) for t in names for s in chance.sample(names, 6) if s != t]
    found = plan_retention(dict.fromkeys(names, 100), edges, Limits(hops=4), solver="greedy")
    assert keeps_the_limits(found.taken, Limits(hops=4)) and found.gap < 0.2
