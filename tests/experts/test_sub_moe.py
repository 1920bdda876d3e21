"""Sub-MoE against plain NumPy written from its formulas, and against planted twins."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from experts.test_mc_smoe import Held, some
from nett.core.cards import find_card
from nett.core.errors import Refused
from nett.experts import engine
from nett.experts.budgets import shared_counts
from nett.experts.clustering import kmeans, points_of
from nett.experts.subspaces import groups_of, merged_in_subspace
from nett.experts.union import union_mean
from support.mixtures import Paper, logits_of, permuted, tensors, upcycled, write_mixture

IDS = torch.arange(3, 40)[None]


def by_the_formula(matrices: Any, weights: Any, rank: int) -> Any:
    """U_k S_k sum f_i V_i / sum f_i, from the decomposition of all matrices side by side."""
    u, s, v = np.linalg.svd(np.concatenate(matrices, 1), full_matrices=False)
    parts = np.split(v, len(matrices), axis=1)
    mean = sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)
    return (u[:, :rank] * s[:rank]) @ mean[:rank]


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (20, 3)])
def test_full_rank_is_the_weighted_mean(shape: tuple[int, int]) -> None:
    """The paper's formula with every singular value, the weighted mean, and what nett makes are one matrix."""
    rng = np.random.default_rng(0)
    matrices, weights = [rng.normal(size=shape) for _ in range(3)], [5.0, 2.0, 1.0]
    mean = (5 * matrices[0] + 2 * matrices[1] + matrices[2]) / 8
    full = min(shape[0], 3 * shape[1])
    assert np.abs(by_the_formula(matrices, weights, full) - mean).max() < 1e-13
    made, rank = union_mean(matrices, weights, 1.0)
    assert rank == full and np.abs(made - mean).max() < 1e-14


@pytest.mark.parametrize(("shape", "share"), [((6, 10), 0.5), ((10, 6), 0.75), ((20, 3), 0.25)])
def test_lower_ranks_are_the_formula(shape: tuple[int, int], share: float) -> None:
    """And no nearer to the mean than any projection of it: the gap is what lies outside U_k."""
    rng = np.random.default_rng(1)
    matrices, weights = [rng.normal(size=shape) for _ in range(3)], [5.0, 2.0, 1.0]
    made, rank = union_mean(matrices, weights, share)
    assert rank == round(share * min(shape[0], 3 * shape[1]))
    assert np.abs(made - by_the_formula(matrices, weights, rank)).max() < 1e-12
    assert np.linalg.matrix_rank(made) <= rank
    mean = sum(w * m for w, m in zip(weights, matrices, strict=True)) / 8
    assert np.sum(made**2) <= np.sum(mean**2)


def test_a_layer_by_the_formula() -> None:
    """All three matrices of two clusters, at full rank and at three quarters."""
    experts, counts = some(4), torch.tensor([6.0, 3.0, 1.0, 2.0]).double()
    for rank in (1.0, 0.75):
        made = merged_in_subspace(
            Held(experts), [0, 3], [0, 0, 1, 1], counts, by="frequency", rank=rank, align=False, inertia=0.0
        )
        for new, old in zip(
            (made.experts.gate, made.experts.up, made.experts.down),
            (experts.gate, experts.up, experts.down),
            strict=True,
        ):
            held = old.double().numpy()
            out, columns = held.shape[1:]
            k = round(rank * min(out, 2 * columns))
            expected = [by_the_formula([held[a], held[b]], f, k) for a, b, f in ((0, 1, (6, 3)), (2, 3, (1, 2)))]
            assert np.allclose(new, np.stack(expected), atol=1e-6)
        if rank < 1:
            numbers = sum(round(rank * o) * (o + i) for o, i in ((5, 7), (5, 7), (7, 5))) / (3 * 35)
            assert made.record["numbers_of_whole"] == pytest.approx(numbers, abs=1e-4)


def sum_within(points: Any, labels: Any) -> float:
    return float(sum(((points[labels == g] - points[labels == g].mean(0)) ** 2).sum() for g in set(labels)))


def test_clusters_are_the_best_of_all_where_they_are_clear() -> None:
    """Three tight bunches: of all 3^9 labellings none has a smaller sum; and the sum is that of the definition."""
    rng = np.random.default_rng(2)
    points = np.repeat(rng.normal(size=(3, 4)), 3, axis=0) + 0.05 * rng.normal(size=(9, 4))
    labels, inertia = kmeans(points, 3)
    assert inertia == pytest.approx(sum_within(points, labels))
    best = min(sum_within(points, np.array(one)) for one in product(range(3), repeat=9) if len(set(one)) == 3)
    assert inertia == pytest.approx(best)


def test_clusters_of_any_order_and_of_equal_points() -> None:
    """The same clusters whatever the order; twins never apart; more clusters than different points leave none empty."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(12, 5))
    order = rng.permutation(12)
    for count in (2, 5, 9):
        one, other = kmeans(points, count), kmeans(points[order], count)
        pairs = [(a[:, None] == a[None]) for a in (one[0][order], other[0])]
        assert np.array_equal(*pairs) and one[1] == pytest.approx(other[1])
        assert len(set(one[0])) == count
    twice = np.repeat(points[:4], 2, axis=0)
    labels, inertia = kmeans(twice, 4)
    assert np.array_equal(labels[::2], labels[1::2]) and inertia < 1e-20
    assert len(set(kmeans(twice, 6)[0])) == 6
    alike = points @ points.T
    again = points_of(alike)
    assert np.allclose(again @ again.T, alike)


def test_groups_by_hand() -> None:
    """Experts 0 and 2 go one way, 1, 3 and 4 another; the most used of each leads. With pools, each has its own."""
    ways = np.array([[1, 0.1], [0, 1], [1, 0], [0.1, 1], [0, 1.1]])
    unit = ways / np.linalg.norm(ways, axis=1)[:, None]
    alike, counts = unit @ unit.T, np.array([1.0, 5, 9, 2, 6])
    leaders, groups, inertia = groups_of(Paper(5), alike, 2, counts)
    assert (leaders, groups) == ([2, 4], [0, 1, 0, 1, 1])
    expected = sum(((unit[list(m)] - unit[list(m)].mean(0)) ** 2).sum() for m in ((0, 2), (1, 3, 4)))
    assert inertia == pytest.approx(expected)
    drawn = groups_of(Paper(5), alike, 2, counts, seed=1)
    assert sorted(np.bincount(drawn[1])) == [2, 3]
    eight = np.kron(np.eye(4), np.ones((2, 2)))
    leaders, groups, _ = groups_of(Paper(8, pools=2), eight, 4, np.arange(8.0))
    assert (leaders, groups) == ([1, 3, 5, 7], [0, 0, 1, 1, 2, 2, 3, 3])


def test_budgets_by_hand() -> None:
    """Merging in the second layer is cheap twice, then dear; the third layer has its own run."""
    layers = [Paper(4, chosen=1) for _ in range(3)]
    costs = [[9, 9, 6, 3, 0], [9, 8, 1, 0.5, 0], [9, 3, 2, 1, 0]]
    assert shared_counts(layers, 0.5, costs, adjacent=2) == [2, 2, 2]
    assert shared_counts(layers, 0.75, costs, adjacent=2) == [4, 2, 3]
    assert shared_counts(layers, 0.5, costs) == [3, 2, 1]
    assert shared_counts(layers, 0.5, costs, adjacent=1) == [2, 2, 2]
    with pytest.raises(Refused, match="pools"):
        shared_counts([Paper(8, pools=2)], 0.5, [[0.0] * 9])


@pytest.fixture(scope="module")
def twins(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    return upcycled(mixtral, tmp_path_factory.mktemp("twins") / "model", row_noise=0.3)


def ran(model: Path, out: Path, **given: Any) -> dict[str, Any]:
    text = out.parent / "text.txt"
    text.write_text(" ".join(map(str, np.random.default_rng(0).integers(1 << 40, size=300))))
    return engine.run(
        find_card("experts/sub_moe"), [str(model)], given, out=out, text=text, length=32, router="map", threads=1
    )


def test_twins_are_found_by_what_they_do(twins: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    """Router rows and the order of neurons differ between twins, outputs do not: the pairs are found; aligned they merge
    without a trace, and averaged as the paper does they are worth nothing."""
    model, known = twins
    receipt = ran(model, tmp_path / "out", align="weights")
    for line, twin in zip(receipt["tensors"], known, strict=True):
        assert all(line["groups"][e] == line["groups"][twin[e]] for e in range(8)) and len(line["leaders"]) == 4
        assert line["distances_within"] < 1e-5
    made = nett.load(tmp_path / "out", as_model=True)
    with torch.no_grad():
        assert float((made(IDS).logits - logits_of(model, IDS)).abs().max()) < 1e-4
    assert receipt["figures"]["judged"]["kl"]["mean"] < 1e-8
    plain = ran(model, tmp_path / "plain")
    assert [t["groups"] for t in plain["tensors"]] == [t["groups"] for t in receipt["tensors"]]
    assert plain["figures"]["judged"]["kl"]["mean"] > 1e-3


@pytest.mark.parametrize("alike", ["means", "router", "weights", "chance"])
def test_every_ablation_writes_a_model(alike: str, twins: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    model, known = twins
    receipt = ran(model, tmp_path / "out", alike=alike, rank=0.5)
    assert receipt["figures"]["experts_by_layer"] == [4, 4]
    found = [
        all(line["groups"][e] == line["groups"][t] for e, t in enumerate(twin))
        for line, twin in zip(receipt["tensors"], known, strict=True)
    ]
    # mean outputs see the pairs; neurons in another order hide them from the weights as they stand
    assert all(found) if alike == "means" else not all(found) or alike == "router"


def test_any_order_of_experts(tmp_path: Path) -> None:
    model = write_mixture(tmp_path / "model", experts=8)
    orders = [[3, 1, 0, 2, 7, 6, 5, 4], [1, 0, 3, 2, 5, 4, 7, 6]]
    other = permuted(model, tmp_path / "other", orders)
    for at, one in enumerate((model, other)):
        ran(one, tmp_path / f"out{at}", keep=0.75, rank=0.75)
    made = [nett.load(tmp_path / f"out{at}", as_model=True) for at in (0, 1)]
    with torch.no_grad():
        assert float((made[0](IDS).logits - made[1](IDS).logits).abs().max()) < 1e-4


def test_experts_alone_in_their_cluster_are_bit_for_bit_theirs(mixtral: Path, tmp_path: Path) -> None:
    receipt = ran(mixtral, tmp_path / "out", keep=0.75)
    before, after = tensors(mixtral), tensors(tmp_path / "out")
    alone = 0
    for line in receipt["tensors"]:
        for g, leader in enumerate(line["leaders"]):
            if line["groups"].count(g) == 1:
                alone += 1
                for role in ("w1", "w2", "w3"):
                    names = [f"{line['name']}.experts.{e}.{role}.weight" for e in (g, leader)]
                    assert torch.equal(after[names[0]], before[names[1]])
    assert alone >= 4
