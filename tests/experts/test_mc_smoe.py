"""MC-SMoE against planted duplicates and plain NumPy written from its formulas."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.core.cards import find_card
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import Refused
from nett.experts import engine
from nett.experts.aligning import alikeness, order_like
from nett.experts.grouping import cosines, covering, joined_to
from nett.experts.merging import merged, shares
from nett.experts.protocol import Experts
from nett.experts.splitting import multiplied, parts, split
from support.mixtures import Paper, logits_of, rewrite, tensors, upcycled

IDS = torch.arange(3, 40)[None]


def some(count: int = 3, width: int = 5, hidden: int = 7, seed: int = 0) -> Experts:
    rng = np.random.default_rng(seed)
    shapes = ((count, width, hidden), (count, width, hidden), (count, hidden, width))
    return Experts(*(torch.from_numpy(rng.normal(size=s).astype(np.float32)) for s in shapes))


class Held(Paper):
    """A layer of arrays."""

    def __init__(self, experts: Experts) -> None:
        super().__init__(len(experts), 1)
        self.experts = experts
        self.width, self.hidden = experts.width, int(experts.gate.shape[2])

    def read(self) -> Experts:
        return self.experts


def test_orders_are_the_best_of_all() -> None:
    """Against every one of the 120 permutations, in float64."""
    experts = some()
    g, u, d = (t.double().numpy() for t in (experts.gate, experts.up, experts.down))

    inner = g[0] @ g[1].T + u[0] @ u[1].T + d[0].T @ d[1]

    def worth(order: Any) -> float:
        return float(sum(inner[i, j] for i, j in enumerate(order)))

    best = max(permutations(range(5)), key=worth)
    assert order_like(experts, 0, 1).tolist() == list(best)
    norms = [np.sqrt((g[e] ** 2).sum() + (u[e] ** 2).sum() + (d[e] ** 2).sum()) for e in (0, 1)]
    assert alikeness(experts, 0, 1) == pytest.approx(worth(best) / (norms[0] * norms[1]), rel=1e-5)


def test_groups_by_hand() -> None:
    products = torch.tensor([[4.0, 0, 3, 0], [0, 1, 0, 0.9], [3, 0, 9, 0], [0, 0.9, 0, 1]])
    expected = [[1, 0, 0.5, 0], [0, 1, 0, 0.9], [0.5, 0, 1, 0], [0, 0.9, 0, 1]]
    assert np.allclose(cosines(products), expected)
    assert joined_to([1, 2], cosines(products)) == [1, 0, 1, 0]
    assert joined_to([0, 3], np.zeros((4, 4))) == [0, 0, 0, 1]  # ties go to the first, leaders to themselves


def test_leaders_cover_what_is_used() -> None:
    """0 and 1 are one; by use alone both lead, and 3 is left to join them."""
    alike = np.array([[1, 1, 0, 0.1], [1, 1, 0, 0.1], [0, 0, 1, 0.2], [0.1, 0.1, 0.2, 1]])
    assert covering(Paper(4, 1), np.array([9.0, 9, 4, 3]), alike, 2) == [0, 2]
    assert covering(Paper(4, 1, 2), np.array([9.0, 9, 4, 3]), alike, 2) == [0, 2]
    assert covering(Paper(4, 1), np.array([1.0, 1, 1, 1]), alike, 4) == [0, 1, 2, 3]


def test_means_against_numpy() -> None:
    experts, counts = some(4), torch.tensor([6.0, 3.0, 1.0, 2.0]).double()
    made = merged(Held(experts), [0, 3], [0, 0, 1, 1], counts, align=False, by="frequency", rank=1.0, rows=0.0)
    for new, old in (
        (made.experts.gate, experts.gate),
        (made.experts.up, experts.up),
        (made.experts.down, experts.down),
    ):
        held = old.double().numpy()
        expected = np.stack([(6 * held[0] + 3 * held[1]) / 9, (1 * held[2] + 2 * held[3]) / 3])
        assert np.allclose(new, expected, atol=1e-6)
    assert shares([0, 3], [0, 0, 1, 1], counts, "equal").tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert shares([0, 3], [0, 0, 1, 1], counts, "dominant").tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_alignment_finds_what_was_shuffled() -> None:
    """Three experts that are one in three orders, averaged: that one again, where alignment is on, and not where it is off."""
    one, rng = some(1, 9, 6), np.random.default_rng(1)
    orders = [np.arange(9), rng.permutation(9), rng.permutation(9)]
    three = one.take([0, 0, 0]).neurons(np.stack(orders))
    counts = torch.tensor([2.0, 1.0, 1.0]).double()
    for align in (True, False):
        made = merged(Held(three), [0], [0, 0, 0], counts, align=align, by="frequency", rank=1.0, rows=0.0)
        gap = float((made.experts.gate - one.gate).abs().max())
        assert gap < 1e-6 if align else gap > 0.1


def test_split_against_numpy() -> None:
    """W = L R + S with the rank of the formula; S holds the rows of the rest whose norms are largest."""
    matrix = some(1, 12, 20).gate[0]
    made = parts(matrix, 0.5, 0.25)
    r = round(0.5 * 12 * 20 / 32)
    assert made["left"].shape == (12, r) and made["right"].shape == (r, 20) and len(made["rows"]) == 3
    u, s, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    low = (u[:, :r] * s[:r]) @ v[:r]
    assert np.allclose(made["left"] @ made["right"], low, atol=1e-4)  # singular vectors in float32
    gap, rows = matrix.double().numpy() - low, made["rows"].numpy()
    assert rows.tolist() == sorted(np.argsort(-(gap**2).sum(1))[:3].tolist())
    assert np.allclose(made["rest"], gap[rows], atol=1e-4)
    low[rows] += gap[rows]
    assert np.allclose(multiplied(made), low, atol=1e-4)
    whole, about = split(some(2, 12, 20), 1.0, 1.0)
    assert torch.allclose(multiplied(whole["gate"][1]), some(2, 12, 20).gate[1], atol=1e-5)
    assert about["numbers_of_whole"] == pytest.approx((8 * 32 + 240) / 240, abs=1e-4) and about["split_error"] < 1e-10


@pytest.fixture(scope="module")
def twins(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    return upcycled(mixtral, tmp_path_factory.mktemp("twins") / "model")


def ran(model: Path, out: Path, **given: Any) -> dict[str, Any]:
    text = out.parent / "text.txt"
    text.write_text(" ".join(map(str, np.random.default_rng(0).integers(1 << 40, size=300))))
    return engine.run(
        find_card("experts/mc_smoe"), [str(model)], given, out=out, text=text, length=32, router="map", threads=1
    )


def test_planted_twins_are_found_and_merged_without_a_trace(
    twins: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    """Every expert stands twice with its neurons shuffled: the pairs are found, and the logits are those before."""
    model, known = twins
    receipt = ran(model, tmp_path / "out", keep=0.5, dominant="covering")
    for line, twin in zip(receipt["tensors"], known, strict=True):
        assert all(line["groups"][e] == line["groups"][twin[e]] for e in range(8)) and len(line["leaders"]) == 4
    made = nett.load(tmp_path / "out", as_model=True)
    with torch.no_grad():
        assert float((made(IDS).logits - logits_of(model, IDS)).abs().max()) < 1e-4
    assert receipt["figures"]["judged"]["kl"]["mean"] < 1e-8


def test_without_alignment_the_same_pairs_are_worth_nothing(
    twins: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    receipt = ran(twins[0], tmp_path / "out", keep=0.5, dominant="covering", align="no")
    assert receipt["figures"]["judged"]["kl"]["mean"] > 1e-3


def test_pairs_are_found_by_weights_too(twins: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    model, known = twins
    receipt = ran(model, tmp_path / "out", keep=0.5, alike="weights")
    leads = [line["leaders"] for line in receipt["tensors"]]
    for line, twin, leaders in zip(receipt["tensors"], known, leads, strict=True):
        for e in range(8):
            if twin[e] in leaders and e not in leaders:
                assert line["groups"][e] == line["groups"][twin[e]]


def test_experts_alone_in_their_group_are_bit_for_bit_theirs(mixtral: Path, tmp_path: Path) -> None:
    receipt = ran(mixtral, tmp_path / "out", keep=0.75)
    before, after = tensors(mixtral), tensors(tmp_path / "out")
    for line in receipt["tensors"]:
        for g, leader in enumerate(line["leaders"]):
            if line["groups"].count(g) == 1:
                for role in ("w1", "w2", "w3"):
                    names = [f"{line['name']}.experts.{e}.{role}.weight" for e in (g, leader)]
                    assert torch.equal(after[names[0]], before[names[1]])


def test_parts_are_smaller_and_load_as_they_were_judged(mixtral: Path, tmp_path: Path) -> None:
    receipt = ran(mixtral, tmp_path / "out", keep=0.75, rank=0.4, rows=0.1)
    whole = ran(mixtral, tmp_path / "whole", keep=0.75)
    line = receipt["tensors"][0]
    assert 0.4 < line["numbers_of_whole"] < 0.6
    experts = sum(line["numbers_of_whole"] * 3 * 3 * 16 * 32 * 4 for line in receipt["tensors"])
    held = {n: t for n, t in tensors(tmp_path / "out").items() if ".experts." in n}
    assert sum(t.nbytes for n, t in held.items() if not n.endswith("rows")) == pytest.approx(experts, rel=1e-3)
    assert receipt["bytes_after"] < whole["bytes_after"]
    assert all(c["ok"] for c in engine.verify(tmp_path / "out", receipt))
    made = nett.load(tmp_path / "out", as_model=True)
    stem = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    one = multiplied({p: held[f"{stem}.{p}"] for p in ("left", "right", "rows", "rest")})
    assert torch.allclose(made.model.layers[1].mlp.experts.down_proj[2], one, atol=1e-6)
    dense = nett.load(tmp_path / "out")
    assert np.allclose(dense[stem], one, atol=1e-6) and not any(n.endswith(".left") for n in dense)
    with pytest.raises((RuntimeError, ValueError, OSError)):
        logits_of(tmp_path / "out", IDS)


def test_parts_that_lack_one_are_named(mixtral: Path, tmp_path: Path) -> None:
    ran(mixtral, tmp_path / "out", keep=0.75, rank=0.4, rows=0.1)
    stem = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    bad = rewrite(tmp_path / "out", tmp_path / "bad", lambda held, config: held.pop(f"{stem}.right"))
    (bad / "model.safetensors").rename(bad / "split.safetensors")
    with pytest.raises(Refused, match="lacks its part"):
        open_checkpoint(bad)
