"""Duplex's rules against plain NumPy: rooflines by hand, splits by brute force, no scheme slower than what it contains."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.experts.duplex import Processor, expert_seconds, split, split_by_space
from nett.experts.duplex_costs import QUANTITIES, Costs, Layers, Stage
from nett.experts.duplex_reading import Setup
from nett.experts.duplex_settings import SCHEMES, Settings
from nett.experts.duplex_work import expert, products

MIXTRAL: dict[str, Any] = {
    "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "intermediate": 14336, "experts": 8, "top_k": 2, "vocabulary": 32000,
}  # fmt: skip
SMALL: dict[str, Any] = {
    **MIXTRAL,
    "layers": 2,
    "hidden": 256,
    "intermediate": 512,
    "heads": 8,
    "kv_heads": 2,
    "vocabulary": 512,
}
FLOPS, WIDE = 989.4e12, 3.352e12  # of an H100
NEAR, SLOW = 4 * WIDE, 8 * 4 * WIDE  # Logic-PIM


def setup(model: dict[str, Any] = MIXTRAL, **more: Any) -> Setup:
    made = Settings.model_validate({"model": model, **more})
    return Setup(made, made.model, Path())  # type: ignore[arg-type]


def layers(of: Setup, most: int = 600, drawn: int = 64) -> Layers:
    """How tokens are spread; fewer layers drawn where speed matters more than chance."""
    found = Layers(of, most)
    if drawn < 64:
        found.counts, found.chosen = found.counts[:drawn], found.chosen % drawn
    return found


def stage(**given: float) -> Stage:
    names = ("decoding", "contexts", "prompts", "tokens", "pairs", "keys", "ended")
    return Stage(**{n: np.array([given.get(n, 0)], np.float64) for n in names})


def roofline(flops: float, moved: float) -> tuple[float, float]:
    return max(flops / FLOPS, moved / WIDE), max(flops / SLOW, moved / NEAR)


def test_layers_of_mixtral_by_hand() -> None:
    """A decoding stage of 48 requests with 1500 tokens of context each, on one device: every layer from the formulas."""
    of = setup()
    told = {
        s: Costs(of, s, layers(of)).of(stage(decoding=48, contexts=48 * 1500), np.array([0])) for s in ("gpu", "pim")
    }
    n, hidden, wide, vocabulary = 48, 4096, 4096 + 2 * 1024, 32000

    def product(taken: int, given: int, times: int) -> tuple[float, float]:
        return times * 2.0 * n * taken * given, times * 2.0 * (taken * given + n * (taken + given))

    work = [
        product(hidden, wide, 32),
        product(4096, hidden, 32),
        product(hidden, 8, 32),
        product(hidden, vocabulary, 1),
    ]
    expected = np.array([roofline(*w) for w in work])
    assert [told["gpu"]["fc"][0, 0], told["pim"]["fc"][0, 0]] == pytest.approx(expected.sum(0), rel=1e-12)
    # scores and sums of 32 heads of 128; keys and values of 8; queries and answers
    flops, moved = 32 * 4.0 * 4096 * n * 1500, 32 * (2 * 1024 * 2.0 * n * 1500 + 2 * 4096 * 2.0 * n)
    assert flops / moved == pytest.approx(4, rel=0.01)  # heads of a group: the paper's 4 to 8
    assert [told[s]["attention"][0, 0] for s in ("gpu", "pim")] == pytest.approx(roofline(flops, moved), rel=1e-12)
    assert told["gpu"]["attention"][0, 0] == pytest.approx(4 * told["pim"]["attention"][0, 0])  # both by bandwidth


def test_a_prompt_by_hand() -> None:
    """600 tokens looked at causally: 600 * 601 / 2 pairs, 4 * 4096 operations each in each of 32 layers."""
    of = setup()
    read = stage(prompts=1, tokens=600, pairs=600 * 601 / 2, keys=600, ended=1)
    told = {s: Costs(of, s, layers(of)).of(read, np.array([0]))["attention"][0] for s in ("gpu", "pim", "best")}
    flops, moved = 32 * 4.0 * 4096 * 600 * 601 / 2, 32 * 2.0 * 600 * (2 * 1024 + 2 * 4096)
    assert [told[s][0] for s in ("gpu", "pim")] == pytest.approx(roofline(flops, moved), rel=1e-12)
    assert told["best"][0] == told["gpu"][0]
    sums = dict(zip(QUANTITIES, told["gpu"], strict=True))
    assert (sums["xpu_flops"], sums["xpu_bytes"], sums["pim_flops"]) == (pytest.approx(flops), pytest.approx(moved), 0)


@pytest.mark.parametrize("tokens", [0, 1, 7, 31, 300, 5000])
def test_an_expert_has_as_many_operations_a_byte_as_tokens(tokens: int) -> None:
    of = setup()
    work = expert(of.model, 1.0, of.settings.bytes)
    weights = 3 * 4096 * 14336
    flops, moved = 2.0 * tokens * weights, 2.0 * weights + tokens * 2.0 * (2 * 4096 + 3 * 14336)
    found = [expert_seconds(np.array([tokens]), work, p)[0] for p in (Processor(FLOPS, WIDE), Processor(SLOW, NEAR))]
    assert found == pytest.approx(roofline(flops, moved) if tokens else (0.0, 0.0), rel=1e-12)
    if tokens:
        assert flops / moved == pytest.approx(tokens, rel=0.0004 * tokens)  # less what activations take
        assert (found[1] < found[0]) == (tokens < 32)  # the paper: Logic-PIM is for 1 to 32


TIMES = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=9)


@given(TIMES)
def test_the_split_is_the_best_of_all_and_never_slower_than_one_processor(rows: list[tuple[int, int]]) -> None:
    xpu, pim = np.sort(np.array(rows, np.float64).T, axis=1)
    found = split(xpu[None], pim[None])
    every = [max(pim[:s].sum(), xpu[s:].sum()) for s in range(len(xpu) + 1)]
    assert found.seconds[0] == pytest.approx(min(every))
    assert every[int(found.count[0])] == pytest.approx(min(every))
    assert found.seconds[0] <= min(xpu.sum(), pim.sum()) * (1 + 1e-12)
    # the paper's way: one expert after the other, until it no longer helps
    s = 0
    while s < len(xpu) and every[s + 1] <= every[s]:
        s += 1
    assert every[s] == pytest.approx(min(every))


@given(st.lists(st.integers(0, 400), min_size=2, max_size=8))
def test_splits_by_tokens_against_all_subsets(tokens: list[int]) -> None:
    """Of all 2^E ways to share experts out, the split by tokens is at most a quarter slower than the best."""
    of = setup()
    work = expert(of.model, 1.0, of.settings.bytes)
    counts = np.sort(np.array(tokens))
    xpu, pim = (expert_seconds(counts, work, p) for p in (Processor(FLOPS, WIDE), Processor(SLOW, NEAR)))
    ways = itertools.product((False, True), repeat=len(counts))
    best = min(max(xpu[~np.array(w)].sum(), pim[np.array(w)].sum()) for w in ways)
    found = split(xpu[None], pim[None]).seconds[0]
    assert best * (1 - 1e-12) <= found <= 1.25 * best + 1e-12


@given(TIMES, st.integers(1, 5))
def test_spaces_of_the_memory_by_brute_force(rows: list[tuple[int, int]], spaces: int) -> None:
    """All experts of a space on one processor; never faster than the best of all subsets, never slower than one processor."""
    xpu, pim = np.array(rows, np.float64).T
    on_pim, far, near = split_by_space(xpu[None], pim[None], spaces)
    best = np.inf
    for way in itertools.product((False, True), repeat=spaces):
        there = np.array([way[e % spaces] for e in range(len(xpu))])
        best = min(best, max(xpu[~there].sum(), pim[there].sum()))
    assert max(far[0], near[0]) == best <= min(xpu.sum(), pim.sum())
    assert (far[0], near[0]) == (xpu[~on_pim[0]].sum(), pim[on_pim[0]].sum())
    for space in range(spaces):
        assert len(set(on_pim[0][space::spaces].tolist())) <= 1


STAGES = st.tuples(st.integers(0, 64), st.integers(1, 4000), st.integers(0, 3), st.integers(1, 500))


@settings(max_examples=25, deadline=None)
@given(
    STAGES,
    st.sampled_from(["tensor", "expert"]),
    st.sampled_from([(1, 1), (1, 4), (2, 2)]),
    st.floats(0.5, 16),
    st.floats(0.5, 64),
    st.sampled_from([0, 4]),
)
def test_no_scheme_is_slower_than_what_it_contains(
    of: tuple[int, int, int, int], cut: str, devices: tuple[int, int], bandwidth: float, opb: float, spaces: int
) -> None:
    decoding, context, prompts, length = of
    pim = {"bandwidth": f"{bandwidth}x", "flops": f"{opb} FLOP/B"}
    made = setup(
        SMALL,
        hardware={"nodes": devices[0], "devices": devices[1], "pim": pim},
        serving={"experts": cut, "spaces": spaces},
    )
    drawn = layers(made, 2000, drawn=3)
    tokens = prompts * length
    one = stage(decoding=decoding, contexts=decoding * context, prompts=prompts, tokens=tokens,
                pairs=prompts * length * (length + 1) / 2, keys=tokens, ended=prompts)  # fmt: skip
    seconds = {s: sum(v[0, 0] for v in Costs(made, s, drawn).of(one, np.array([3])).values()) for s in SCHEMES}
    slack = 1 + 1e-9
    assert seconds["best"] <= min(seconds["gpu"], seconds["pim"]) * slack
    assert max(seconds["experts"], seconds["attention"]) <= seconds["best"] * slack
    assert seconds["duplex"] <= min(seconds["experts"], seconds["attention"]) * slack


@pytest.mark.parametrize("cut", ["tensor", "expert"])
def test_work_is_the_same_wherever_it_is_done(cut: str) -> None:
    """Operations of a stage do not depend on the scheme, nor on how experts are cut; nor, but for copies, do bytes."""
    one = stage(decoding=40, contexts=40_000, prompts=1, tokens=300, pairs=300 * 301 / 2, keys=300, ended=1)
    found = []
    for scheme in SCHEMES:
        of = setup(SMALL, hardware={"devices": 2}, serving={"experts": cut})
        cost = sum(Costs(of, scheme, layers(of, 2000, drawn=2)).of(one, np.array([1])).values())[0]  # type: ignore[index]
        sums = dict(zip(QUANTITIES, cost, strict=True))
        found.append([sums["xpu_flops"] + sums["pim_flops"], sums["xpu_bytes"] + sums["pim_bytes"]])
    assert found == [pytest.approx(found[0], rel=1e-12)] * len(found)
    n, total = 340, 0.0
    for taken, given_, asked in ((256, 256 + 128, n), (256, 256, n), (256, 8, 2 * n), (256, 512, 41 / 2)):
        total += (
            2 * 2.0 * taken * given_ * asked
        )  # two layers; the router is held by both devices, the head is there once
    total += 2 * 4.0 * 256 * (40_000 + 300 * 301 / 2) + 2 * 2.0 * 2 * n * 3 * 256 * 512
    assert found[0][0] == pytest.approx(total)


def test_products_are_the_weights_of_a_layer() -> None:
    of = setup()
    held = sum(p.taken * p.given * p.count for p in products(of.model, 4) if p.name in ("qkv", "projection"))
    assert held * 4 == 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096)
