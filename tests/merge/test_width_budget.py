"""The budget of a partial merge: costs counted entry by entry, ratios against every possible choice."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nett.core.errors import Refused
from nett.core.symmetry import Group, Place, Symmetry
from nett.merge.width_budget import Axis, Term, best_ratios, terms_of, total, uniform_ratio


def chain(*widths, each=None):
    """A fully connected network of these widths: its terms by hand, group k behind layer k."""

    def axis(k):
        return Axis(0, {f"g{k}": widths[k]}) if 0 < k < len(widths) - 1 else Axis(widths[k])

    layers = range(len(widths) - 1)
    return [Term(1.0 if each is None else each[k], axis(k + 1), axis(k)) for k in layers]


def test_costs_are_the_entries_that_are_not_zero():
    """(1 + r1)(1 + r2) - 2 r1 r2 of a matrix, counted in one that is filled by blocks."""
    (term,) = [t for t in chain(3, 10, 8, 2) if t.out.of_group and t.into.of_group]
    for a, b in product(range(0, 11, 2), range(0, 9, 2)):
        filled = np.ones((8 + b, 10 + a))
        filled[8 - b : 8, 10 : 10 + a] = 0
        filled[8:, 10 - a : 10] = 0
        ratios = {"g1": a / 10, "g2": b / 8}
        assert term.at(ratios) == pytest.approx(np.count_nonzero(filled))
        assert term.at(ratios) == pytest.approx(80 * ((1 + a / 10) * (1 + b / 8) - 2 * a / 10 * b / 8))
        assert term.at(ratios, dense=True) == pytest.approx(filled.size)


def test_terms_of_a_symmetry():
    rows, columns = (Place(n, a, np.arange(4)[:, None], r) for n, a, r in (("a", 0, "producer"), ("b", 1, "consumer")))
    symmetry = Symmetry((Group("g", "channel", (rows, columns)),), {"a": (4, 3, 2, 2), "b": (5, 4), "c": (7,)})
    terms = terms_of(symmetry, {"a": 10.0, "b": 1.0, "c": 1.0})
    assert total(terms, {}) == 10 * 48 + 20 + 7
    assert total(terms, {"g": 0.5}) == 1.5 * (480 + 20) + 7
    assert total(terms, {"g": 1.0}) == 2 * 500 + 7


def shared(sizes):
    """A residual stream: one group on both axes of a matrix, and one inside."""
    stream, inner = sizes
    s, i = {"s": stream}, {"i": inner}
    return [Term(1, Axis(0, s), Axis(5)), Term(1, Axis(0, i), Axis(0, s)), Term(1, Axis(0, s), Axis(0, i)),
            Term(2, Axis(0, s), Axis(0, s)), Term(1, Axis(3), Axis(0, s))]  # fmt: skip


def brute_force(terms, gains, sizes, budget):
    """The best of every choice of whole units, all choices at once."""
    names = sorted(gains)
    shares = np.array(list(product(*(np.arange(sizes[n] + 1) / sizes[n] for n in names))))

    def positions(axis):
        apart = sum(n * shares[:, names.index(g)] for g, n in axis.of_group.items())
        return axis.fixed + sum(axis.of_group.values()) + apart, apart

    costs = 0
    for term in terms:
        (out, out_apart), (into, into_apart) = positions(term.out), positions(term.into)
        costs = costs + term.each * (out * into - 2 * out_apart * into_apart)
    return max((shares @ [gains[n] for n in names])[costs <= budget * costs[0] + 1e-9])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("budget", [1.1, 1.3, 1.55, 1.8, 1.95])
def test_ratios_are_as_good_as_the_best_of_all(seed, budget):
    """At least 99 % of what the best choice gains (the refinement ends at a local optimum), and within the budget."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 2:
        sizes = {"s": int(rng.integers(4, 12)), "i": int(rng.integers(4, 12))}
        terms = shared((sizes["s"], sizes["i"]))
    else:
        widths = rng.integers(3, 11, 5 if seed % 3 else 4).tolist()
        terms = chain(*widths, each=rng.uniform(0.5, 4, len(widths) - 1))
        sizes = {f"g{k}": w for k, w in enumerate(widths) if 0 < k < len(widths) - 1}
    gains = {n: float(rng.uniform(0, 1)) for n in sizes}
    found = best_ratios(terms, gains, sizes, budget)
    assert total(terms, found) <= budget * total(terms, {}) * (1 + 1e-9)
    assert all((r * sizes[n]) == pytest.approx(round(r * sizes[n])) and 0 <= r <= 1 for n, r in found.items())
    gained = sum(gains[n] * r for n, r in found.items())
    assert gained >= 0.99 * brute_force(terms, gains, sizes, budget)
    assert found == best_ratios(terms, dict(reversed(gains.items())), sizes, budget)


def test_the_ends_and_what_is_no_budget():
    terms, sizes = chain(4, 6, 6, 2), {"g1": 6, "g2": 6}
    gains = {"g1": 1.0, "g2": 0.5}
    assert best_ratios(terms, gains, sizes, 2.0) == {"g1": 1.0, "g2": 1.0}
    assert best_ratios(terms, gains, sizes, 1.0) == {"g1": 0.0, "g2": 0.0}
    assert uniform_ratio(terms, ["g1", "g2"], 2.0) == 1.0
    assert uniform_ratio(terms, ["g1", "g2"], 1.0) == pytest.approx(0, abs=1e-9)
    middle = uniform_ratio(terms, ["g1", "g2"], 1.5)
    assert total(terms, {"g1": middle, "g2": middle}) == pytest.approx(1.5 * total(terms, {}))
    with pytest.raises(Refused, match=r"a budget of 0\.5 is less than one network"):
        best_ratios(terms, gains, sizes, 0.5)


def test_room_that_gains_nothing_is_used_too():
    terms, sizes = chain(4, 6, 6, 2), {"g1": 6, "g2": 6}
    found = best_ratios(terms, {"g1": 1.0, "g2": 0.0}, sizes, 1.9)
    assert found["g1"] == 1.0 and found["g2"] > 0
