"""Tree search: shares and the integer programme against plain enumeration, the ledger by hand, bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from math import ceil, exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nett
from nett.cache.allotting import by_rank, by_reward, by_subtree, evenly
from nett.cache.countdown import Countdown, moves, problem
from nett.cache.leaf_programme import chosen, objective, tie_break
from nett.cache.search_tree import Node, Step, kv_size
from nett.cache.searching import answers_of
from nett.cache.step_clusters import clusters_of, words_of
from nett.cli.app import run
from nett.core.errors import NettError, UsageError

# -- shares -----------------------------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    """T = 1 and e = 4, 2, 1, 1 (scores log 4, log 2, 0, 0), width 8: ceil(8*4/8) = 4, ceil(4*2/4) = 2, ceil(2*1/2) = 1, 1."""
    assert by_reward([np.log(2), 0.0, np.log(4), 0.0], 8, 1.0) == [2, 1, 4, 1]
    # width 3: ceil(3*4/8) = 2, ceil(1*2/4) = 1, and nothing is left
    assert by_reward([np.log(2), 0.0, np.log(4), 0.0], 3, 1.0) == [1, 0, 2, 0]
    # T = 0.2, scores 1, 0.9, 0.5: e = 1, 0.6065, 0.0821 of 1.6886; ceil(9.475) = 10, ceil(6*0.8808) = 6, 0
    assert by_reward([1.0, 0.9, 0.5], 16, 0.2) == [10, 6, 0]


@pytest.mark.parametrize("seed", range(20))
def test_shares_from_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, left = rng.random(int(rng.integers(1, 40))), int(rng.integers(1, 65))
    found, expected = by_reward(scores.tolist(), left, 0.2), [0] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    for place, i in enumerate(order):
        rest = sum(exp(scores[j] / 0.2) for j in order[place:])
        expected[i] = min(left, ceil(round(left * exp(scores[i] / 0.2) / rest, 9)))
        left -= expected[i]
    assert found == expected


def test_equal_rewards_share_evenly_and_extreme_ones_overflow_nothing() -> None:
    assert by_reward([0.3] * 4, 8, 0.2) == [2, 2, 2, 2]
    assert by_reward([0.1] * 3, 12, 0.2) == [4, 4, 4]
    assert by_reward([1e6, -1e6, 0.0], 5, 1e-3) == [5, 0, 0]
    assert by_reward([7.0], 9, 0.2) == [9]


def test_beams_and_subtrees_share_evenly() -> None:
    assert evenly(3, 8) == [3, 3, 2]
    assert by_rank([0.1, 0.9, 0.5, 0.9], 5, 2) == [0, 3, 0, 2]
    assert by_rank([0.1, 0.9], 1, 2) == [0, 1]
    root = Node(None, Step("", 1))
    # a width of 4 in 2 trees: children 0 and 1 are of the first, 2 and 3 of the second
    firsts = [Node(root, Step(str(i), 1), (i,)) for i in range(4)]
    assert by_subtree(firsts, [0.1, 0.2, 0.9, 0.8], 4, 4, 2) == [0, 2, 2, 0]
    deep = [Node(firsts[2], Step("x", 1), (2, 0)), Node(firsts[2], Step("y", 1), (2, 1))]
    assert by_subtree(deep, [0.5, 0.6], 3, 4, 2) == [0, 3], "the first tree is over"


# -- the integer programme --------------------------------------------------------------------------------------


def tree(rng: np.random.Generator, n: int) -> tuple[list[float], list[list[int]], list[int]]:
    """Shares of ``n`` leaves, their ancestors in a random tree of some depth, and clusters."""
    depth = int(rng.integers(1, 5))
    parents: dict[int, int] = {}
    level, number = [0], 1
    for _ in range(depth - 1):
        below = list(range(number, number + int(rng.integers(1, 5))))
        parents |= {node: int(rng.choice(level)) for node in below}
        level, number = below, number + len(below)
    lines = []
    for _ in range(n):
        line = [int(rng.choice(level))]
        while line[0]:
            line.insert(0, parents[line[0]])
        lines.append(line)
    counts = np.sort(rng.integers(0, 6, n))[::-1]
    return (counts / max(1, counts.sum())).tolist(), lines, rng.integers(0, max(1, n // 2), n).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_the_programme_is_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 11 if seed else 13))
    shares, lines, clusters = tree(rng, n)
    how = {"sharing": float(rng.choice([0.0, 0.5, 1.0, 3.0])), "coverage": float(rng.choice([0.0, 0.7, 1.5]))}
    ties, ancestors, groups = tie_break(n), sorted({a for line in lines for a in line}), sorted(set(clusters))
    best, value = None, -np.inf
    for x in product([False, True], repeat=n):
        if not any(x):
            continue
        y = sum(any(k for line, k in zip(lines, x, strict=True) if a in line) for a in ancestors)
        z = sum(any(k for c, k in zip(clusters, x, strict=True) if c == g) for g in groups)
        plain = sum(s for s, k in zip(shares, x, strict=True) if k)
        plain += how["coverage"] * z / len(groups) - how["sharing"] * (y + sum(x)) / (len(ancestors) + n)
        assert objective(x, shares, lines, clusters, **how) == pytest.approx(plain, abs=1e-12)
        if plain + ties[list(x)].sum() > value + 1e-12:
            best, value = list(x), plain + ties[list(x)].sum()
    assert chosen(shares, lines, clusters, **how) == best


def test_the_programme_by_hand() -> None:
    """Two leaves below one node and one below another, of shares 0.4, 0.3, 0.3; with the root six nodes.

    All three: 1 - 6/6 = 0. The two siblings: 0.7 - 4/6 = 0.0333, the most. Each cluster covered is worth 0.25: all, 0.5.
    """
    lines = [[0, 1], [0, 1], [0, 2]]
    assert chosen([0.4, 0.3, 0.3], lines, [0, 0, 1], sharing=1.0, coverage=0.0) == [True, True, False]
    assert chosen([0.4, 0.3, 0.3], lines, [0, 0, 1], sharing=1.0, coverage=0.5) == [True, True, True]
    assert chosen([0.4, 0.3, 0.3], lines, [0, 0, 1], sharing=100.0, coverage=0.0) == [True, False, False]
    assert chosen([1 / 3] * 3, [[0]] * 3, [0, 1, 2], sharing=0.0, coverage=0.0) == [True] * 3, "ties: more leaves"
    assert chosen([1.0], [[0]], [0], sharing=9.0, coverage=0.0) == [True]


# -- clusters ---------------------------------------------------------------------------------------------------


def test_clusters_by_words_and_by_vectors() -> None:
    texts = ["3 + 5 = 8", "5 + 3 = 8", "8 - 5 = 3", "3 + 5 = 8", "so it is"]
    assert clusters_of(texts, 0.05) == [0, 0, 1, 0, 2]
    assert clusters_of(["same"] * 3, 0.05) == [0, 0, 0]
    assert clusters_of(["", "a", ""], 0.05) == [0, 1, 0], "no words at all are far from any"
    assert words_of(["b a a", "!"]).tolist() == [[0, 2, 1], [1, 0, 0]]
    angles = {"a": 0.0, "b": 10.0, "c": 50.0}  # degrees: 1 - cos 10 = 0.015; c is 1 - cos 50, 1 - cos 40: 0.357, 0.234

    def embed(given: Sequence[str]) -> Any:
        turn = np.deg2rad([angles[t] for t in given])
        return np.stack([np.cos(turn), np.sin(turn)], 1)

    assert clusters_of(["a", "b", "c"], 0.014, embed) == [0, 1, 2]
    assert clusters_of(["c", "a", "b"], 0.29, embed) == [0, 1, 1], "the average of 0.357 and 0.234 is 0.296"
    assert clusters_of(["c", "a", "b"], 0.30, embed) == [0, 0, 0]
    # a second "b" moves the average: (0.357 + 2 * 0.234) / 3 = 0.275
    assert clusters_of(["c", "a", "b", "b"], 0.29, embed) == [0, 0, 0, 0]


@pytest.mark.parametrize("made", [[[1.0, 2.0]], [1.0, 2.0], [[1.0], [float("nan")]], "words"])
def test_bad_embeddings(made: Any) -> None:
    with pytest.raises(NettError, match=r"cache/ets: embed gave"):
        clusters_of(["a", "b"], 0.05, lambda _: made)


# -- the ledger and the search ----------------------------------------------------------------------------------


def test_kv_size_by_hand() -> None:
    """Root of 10 tokens; children of 3 and 4; two leaves of 5 and 6 below the first: 10 + 3 + 5 + 6 + 4."""
    root = Node(None, Step("p", 10))
    a, b = Node(root, Step("a", 3), (0,)), Node(root, Step("b", 4), (1,))
    c, d = Node(a, Step("c", 5), (0, 0)), Node(a, Step("c", 6), (0, 1))
    assert kv_size([c, d, b]) == 28 and kv_size([c, d]) == 24 and kv_size([b]) == 14
    assert d.text == "pac" and [n.step.text for n in d.line()] == ["p", "a", "c"]


class Script:
    """Children named by their ranks, of known tokens and rewards; those in ``ends`` are done."""

    def __init__(self, rewards: dict[tuple[int, ...], float], ends: dict[tuple[int, ...], str | None]) -> None:
        self.rewards, self.ends = rewards, ends
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def generate(self, node: Node, count: int, rng: np.random.Generator) -> list[Step]:
        self.asked.append((node.path, count))
        paths = [(*node.path, i) for i in range(count)]
        return [Step(f"{p}", 2, done=p in self.ends, answer=self.ends.get(p)) for p in paths]

    def reward(self, nodes: Sequence[Node]) -> list[float]:
        return [self.rewards.get(n.path, 0.0) for n in nodes]


def test_a_search_by_hand() -> None:
    """Width 4, T = 1 (e = exp of the reward). Step 1: four children of 2 tokens below a prompt of 5: 13 held. One is done, so
    3 are left for rewards log 2, 0, 0: ceil(3*2/4) = 2, ceil(1*1/2) = 1, 0. Step 2: three leaves, two parents: 5 + 4 + 6 = 15,
    all done."""
    script = Script({(0,): np.log(2), (3,): 0.4, (0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.6},
                    {(3,): "x", (0, 0): "x", (0, 1): "y", (1, 0): None})  # fmt: skip
    found = nett.cache.ets(Step("p", 5), script.generate, script.reward, by="rebase", width=4, temperature=1.0)
    assert script.asked == [((), 4), ((0,), 2), ((1,), 1)]
    assert found.ledger == {"steps": 2, "calls": 3, "generated": 14, "kv_tokens": 28, "kv_peak": 15, "kv_mean": 14.0,
                            "kept": [1, 2], "done": 4}  # fmt: skip
    assert found.answer == "x", "0.4 + 0.5 against 0.7"
    assert [(a.answer, round(a.weight, 6)) for a in found.answers] == [("x", 0.9), ("y", 0.7)]
    best = answers_of(found.leaves, score="last", pick="best")
    assert best[0].answer == "y"
    script.asked.clear()
    again = nett.cache.ets(
        Step("p", 5), script.generate, script.reward, by="rebase", width=4, temperature=1.0, score="mean"
    )
    assert again.answers[1].weight == pytest.approx((np.log(2) + 0.7) / 2)


@pytest.mark.parametrize("by", ["ets", "rebase", "beam", "dvts"])
def test_width_and_states(by: str) -> None:
    """The width shrinks by every leaf that is done; states of nodes that no leaf needs are let go."""
    task = Countdown(*problem(3, 0), noise=0.4)
    seen: dict[int, list[Node]] = {}
    asked: dict[int, int] = {}

    def generate(node: Node, count: int, rng: np.random.Generator) -> list[Step]:
        asked[node.depth] = asked.get(node.depth, 0) + count
        return task.generate(node, count, rng)

    def reward(nodes: Sequence[Node]) -> list[float]:
        seen[nodes[0].depth] = list(nodes)
        return task.reward(nodes)

    found = nett.cache.ets(task.prompt, generate, reward, by=by, width=16, depth=8)
    width = 16
    for depth in range(found.ledger["steps"]):
        assert asked[depth] == width
        width -= sum(n.step.done for n in seen[depth + 1])
    assert found.ledger["done"] == len(found.leaves) == 16 - width
    assert all(n.state is None for nodes in list(seen.values())[:-1] for n in nodes if n.step.done)
    if width == 0:
        assert all(n.state is None for nodes in seen.values() for n in nodes)


def test_nothing_priced_is_rebase_and_a_high_price_holds_one_branch() -> None:
    task = Countdown(*problem(5, 1), noise=0.4)

    def ledger(**how: Any) -> dict[str, Any]:
        found: dict[str, Any] = nett.cache.ets(task.prompt, task.generate, task.reward, width=16, depth=6, **how).ledger
        return found

    assert ledger(sharing=0.0, coverage=0.0) == ledger(by="rebase")
    assert ledger(sharing=0.0) == ledger(by="rebase")
    dear = ledger(sharing=100.0, coverage=0.0)
    assert set(dear["kept"]) == {1} and dear["kv_tokens"] < ledger(by="rebase")["kv_tokens"]


def test_equal_texts_and_one_leaf() -> None:
    """Equal steps are one cluster: covering it takes one of them."""

    def generate(node: Node, count: int, rng: np.random.Generator) -> list[str]:
        return ["again "] * count

    def ones(nodes: Sequence[Node]) -> list[float]:
        return [1.0] * len(nodes)

    found = nett.cache.ets("go", generate, ones, width=6, depth=3, sharing=6.0)
    assert found.ledger["kept"] == [1, 1, 1] and found.answer is None and found.answers == ()
    alone = nett.cache.ets("go", generate, ones, width=1, depth=3)
    assert alone.ledger["kv_tokens"] == 2 + 3 + 4 and alone.ledger["kept"] == [1, 1, 1]


def test_several_leaves_at_a_time_are_the_same_search() -> None:
    task = Countdown(*problem(1, 2), noise=0.4)

    class Many:
        at_once = 4
        __call__ = staticmethod(task.generate)

    one, many = (nett.cache.ets(task.prompt, g, task.reward, width=12, depth=6) for g in (task.generate, Many()))
    assert one.ledger == many.ledger and one.answer == many.answer


# -- the built-in task and the command ---------------------------------------------------------------------------


def test_the_task_is_exact() -> None:
    assert sorted(moves((2, 6))) == [
        ("6 * 2 = 12", (12,)),
        ("6 + 2 = 8", (8,)),
        ("6 - 2 = 4", (4,)),
        ("6 / 2 = 3", (3,)),
    ]
    assert ("3 - 3 = 0", (0,)) not in moves((3, 3)) and ("3 / 1 = 3", (3,)) not in moves((1, 3))
    task = Countdown((1, 5, 5, 5), 24)
    assert not task.within_reach((1, 5, 5, 5)), "24 of 1 5 5 5 needs a fraction, 5 * (5 - 1/5)"
    assert Countdown((4, 6, 8, 8), 24).within_reach((4, 6, 8, 8))
    numbers, target = problem(7, 3)
    assert problem(7, 3) == (numbers, target) and len(numbers) == 5 and Countdown(numbers, target).within_reach(numbers)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "told.json"
    assert run(["cache", "ets", "--problems", "3", "--numbers", "4", "--width", "8", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "rebase" in said and "ets without coverage" in said
    told = json.loads(file.read_text())
    assert list(told["ways"]) == ["beam", "dvts", "rebase", "ets without coverage", "ets"]
    for name, row in told["ways"].items():
        each = told["searches"][name]
        assert len(each) == 3 and row["accuracy"] == pytest.approx(sum(s["right"] for s in each) / 3)
        assert row["kv_tokens"] == pytest.approx(sum(s["kv_tokens"] for s in each) / 3)
    assert run(["cache", "ets", "--problems", "3", "--dry-run"]) == 0
    assert "plan" in capsys.readouterr().out
    assert run(["cache", "ets", "model"]) == 2
    assert "takes no assets" in capsys.readouterr().err


# -- bad input ---------------------------------------------------------------------------------------------------


def texts(node: Node, count: int, rng: np.random.Generator) -> list[str]:
    return [f"{i} " for i in range(count)]


def zeros(nodes: Sequence[Node]) -> list[float]:
    return [0.0] * len(nodes)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"width": 0}, UsageError, "width = 0 is out of range: 1 <= width"),
        ({"temperature": 0.0}, UsageError, "0 < temperature"),
        ({"generate": 5}, UsageError, "generate is int, not a callable"),
        ({"embed": "model"}, UsageError, "embed is str, not a callable"),
        ({"generate": lambda n, c, r: []}, NettError, "generate gave nothing at step 1"),
        ({"generate": lambda n, c, r: ["a"] * (c + 1)}, NettError, "gave 17 continuations at step 1"),
        ({"generate": lambda n, c, r: [None]}, NettError, "gave NoneType, not a text or a Step"),
        ({"generate": lambda n, c, r: [Step("a", -1)]}, NettError, "a step of -1 tokens"),
        ({"reward": lambda n: [float("nan")] * len(n)}, NettError, "reward gave nan at step 1 for '0 '"),
        ({"reward": lambda n: [0.0]}, NettError, "reward gave 1 numbers for 16 nodes"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[NettError], said: str) -> None:
    given: dict[str, Any] = {"generate": texts, "reward": zeros, "embed": None, **change}
    operands = [given.pop(name) for name in ("generate", "reward", "embed")]
    with pytest.raises(error, match="cache/ets") as caught:
        nett.cache.ets("go", *operands, **given)
    assert said in str(caught.value)
