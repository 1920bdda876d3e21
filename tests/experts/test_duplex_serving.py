"""Continuous batching against a plain loop over tokens, the clock against the costs, routing, figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.test_duplex_rules import FLOPS, MIXTRAL, SMALL, WIDE, layers, setup
from nett.experts.duplex_clock import clock
from nett.experts.duplex_costs import Costs
from nett.experts.duplex_figures import figures_of, weighted_percentile
from nett.experts.duplex_requests import Trace, trace_of
from nett.experts.duplex_routing import CYCLE, draws, grid, popularity, realised
from nett.experts.duplex_running import memory_of, most_tokens, run
from nett.experts.duplex_settings import SCHEMES
from nett.experts.duplex_stages import serve


def ticking(
    turn: int, decoding: int, contexts: int, prompts: int, tokens: int, pairs: float, keys: int, ended: int
) -> float:
    return 1.0 + 0.5 * decoding + 0.001 * contexts + 0.01 * tokens + 0.0001 * pairs + 0.002 * keys + 0.1 * ended


def plainly(trace: Trace, batch: int, room: int, chunk: int) -> dict[str, list[float]]:
    """The same rules, request by request and token by token."""
    told: dict[str, list[float]] = {k: [math.nan] * len(trace) for k in ("admitted", "first", "last")}
    live: list[dict[str, Any]] = []
    queue, now = list(range(len(trace))), 0.0
    seconds, gaps = [], []
    while queue or live:
        while queue and len(live) < batch and trace.arrival[queue[0]] <= now:
            need = trace.input[queue[0]] + trace.output[queue[0]]
            if sum(r["need"] for r in live) + need > room:
                break
            live.append({"id": queue[0], "need": need, "read": 0, "given": 0, "was": math.nan})
            told["admitted"][queue.pop(0)] = now
        if not live:
            now = float(trace.arrival[queue[0]])
            continue
        decoding = [r for r in live if r["given"]]
        left, read, pairs, keys, ended, prompts = chunk or math.inf, 0, 0, 0, [], 0
        for r in [r for r in live if not r["given"]]:
            if left <= 0:
                break
            taken = int(min(left, trace.input[r["id"]] - r["read"]))
            for _ in range(taken):
                r["read"] += 1
                pairs += r["read"]
            keys, read, left, prompts = keys + r["read"], read + taken, left - taken, prompts + 1
            if r["read"] == trace.input[r["id"]]:
                ended.append(r)
        contexts = sum(int(trace.input[r["id"]]) + r["given"] for r in decoding)
        spent = ticking(0, len(decoding), contexts, prompts, read, pairs, keys, len(ended))
        seconds.append(spent)
        now += spent
        for r in decoding + ended:
            if r["given"]:
                gaps.append(now - r["was"])
            else:
                told["first"][r["id"]] = now
            r["given"], r["was"] = r["given"] + 1, now
            if r["given"] == trace.output[r["id"]]:
                told["last"][r["id"]] = now
        live = [r for r in live if r["given"] < trace.output[r["id"]]]
    return {**told, "seconds": seconds, "gaps": gaps}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 9), st.booleans(), st.booleans())
def test_stages_are_those_of_a_plain_loop(seed: int, batch: int, chunk: int, closed: bool, tight: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 14))
    arrival = np.full(count, -math.inf) if closed else np.sort(rng.random(count) * 60)
    trace = Trace(arrival, rng.integers(1, 20, count), rng.integers(1, 12, count), closed)
    room = int((trace.input + trace.output).max()) * (1 if tight else 100)
    served = serve(trace, ticking, batch=batch, room=room, chunk=chunk)
    expected = plainly(trace, batch, room, chunk)
    assert served.seconds == pytest.approx(expected["seconds"])
    for name in ("admitted", "first", "last"):
        assert getattr(served, name) == pytest.approx(expected[name])
    assert served.stages.decoding.sum() + served.stages.ended.sum() == trace.output.sum()  # every token was given
    assert served.stages.tokens.sum() == trace.input.sum()  # every prompt was read, once
    if expected["gaps"]:
        for percent in (50, 90, 99):
            there = weighted_percentile(served.seconds, served.stages.decoding, percent)
            assert there == pytest.approx(np.percentile(expected["gaps"], percent, method="inverted_cdf"))


@pytest.mark.parametrize("hardware", [{"devices": 4}, {"nodes": 2, "devices": 2}])
@pytest.mark.parametrize("able", [["attention", "experts"], ["fc", "attention", "experts"]])
def test_the_clock_says_what_the_costs_are(hardware: dict[str, int], able: list[str]) -> None:
    of = setup(
        MIXTRAL, hardware={**hardware, "pim": {"layers": tuple(able)}}, serving={"batch": 12, "chunk": 90},
        requests={"count": 30, "arrivals": "poisson", "rate": "40/s", "input": {"mean": 200, "std": 90}, "output": {"low": 1, "high": 40}},
    )  # fmt: skip
    trace = trace_of(of.settings.requests, Path())
    drawn = layers(of, most_tokens(of, trace))
    for scheme in SCHEMES:
        costs = Costs(of, scheme, drawn)
        served = serve(trace, clock(costs, 12, most_tokens(of, trace)), batch=12, room=10**6, chunk=90)
        parts = costs.of(served.stages, served.turn)
        assert served.seconds == pytest.approx(sum(p[:, 0] for p in parts.values()), rel=1e-9)


def test_one_request_by_hand() -> None:
    """A dense model on one device, a prompt of 50 and 3 tokens: the times of its stages and its energy, from the formulas."""
    model = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96, "vocabulary": 100}
    of = setup(model, requests={"count": 1, "input": 50, "output": 3}, serving={"batch": 1})
    trace = trace_of(of.settings.requests, Path())
    told = run(of, trace, layers(of, 60), 1000, ["gpu"])["gpu"]

    def stage(tokens: int, pairs: int, keys: int) -> tuple[float, float]:
        shapes = [
            (64, 64 + 2 * 32, 2, tokens),
            (64, 64, 2, tokens),
            (64, 2 * 96, 2, tokens),
            (96, 64, 2, tokens),
            (64, 100, 1, 1),
        ]
        work = [(c * 2.0 * t * a * b, c * 2.0 * (a * b + t * (a + b))) for a, b, c, t in shapes]
        work.append((2 * 4.0 * 64 * pairs, 2 * (2 * 2.0 * 32 * keys + 2 * 2.0 * 64 * tokens)))
        joules = sum(0.23e-12 * f + 3.59 * 8e-12 * m for f, m in work)
        return sum(max(f / FLOPS, m / WIDE) for f, m in work), joules

    stages = [stage(50, 50 * 51 // 2, 50), stage(1, 51, 51), stage(1, 52, 52)]
    assert told["first_token"]["p50"] == pytest.approx(stages[0][0])
    assert told["end_to_end"]["p50"] == pytest.approx(sum(s for s, _ in stages))
    assert told["between_tokens"]["p99"] == pytest.approx(stages[2][0])
    assert told["joules_a_token"] == pytest.approx(sum(j for _, j in stages) / 3)
    assert told["tokens_a_second"] == pytest.approx(3 / sum(s for s, _ in stages))
    assert told["use"]["xpu_busy"] == pytest.approx(1) and told["use"]["pim_busy"] == 0


def test_static_power_is_that_of_all_devices_over_the_time_that_counts() -> None:
    told = []
    for watts in (0, 70):
        of = setup(
            SMALL, hardware={"devices": 3, "static_power": f"{watts} W"}, requests={"count": 4, "input": 9, "output": 5}
        )
        trace = trace_of(of.settings.requests, Path())
        told.append(run(of, trace, layers(of, 300, drawn=2), 1000, ["best"])["best"])
    spent = 3 * 70 * told[0]["seconds_counted"] / 20
    assert told[1]["joules_a_token"] - told[0]["joules_a_token"] == pytest.approx(spent)


def test_links_by_hand() -> None:
    """Two nodes of two devices: sums over a node's devices in a ring, twice a layer; experts of the other node, there and
    back."""
    of = setup(SMALL, hardware={"nodes": 2, "devices": 2})
    costs = Costs(of, "gpu", layers(of))
    row, tokens = 256 * 2.0, 40.0
    ring = 2 * 2 * (2 * (2 - 1)) * (0.8e-6 + tokens * row / 2 / 450e9)
    across = 2 * 2 * (0.13e-6 + tokens * 2 * row * 0.5 / 2 / 50e9)
    assert costs.link(np.array(tokens), np.array(tokens))[0] == pytest.approx(ring + across)


def test_requests_that_wait_for_memory() -> None:
    trace = Trace(np.zeros(3), np.full(3, 10), np.full(3, 5), False)
    served = serve(trace, ticking, batch=8, room=31, chunk=0)
    assert served.admitted[0] == served.admitted[1] == 0
    assert served.admitted[2] == served.last[0] > 0


@pytest.mark.parametrize("by", ["uniform", "zipf"])
def test_tokens_go_to_different_experts(by: str) -> None:
    of = setup({**SMALL, "experts": 6, "top_k": 3}, routing={"by": by, "exponent": 1.0})
    tokens = grid(3 * CYCLE)
    assert list(tokens[:257]) == list(range(257)) and tokens[-1] >= 3 * CYCLE
    counts = draws(popularity(of.settings.routing, of.model, Path()), 3, tokens, 7)
    assert (counts.sum(-1) == 3 * tokens).all() and (counts <= tokens[:, None]).all()
    assert (np.diff(counts, axis=1) >= 0).all()
    means = counts[:, 256].mean(0) / 256
    if by == "uniform":
        assert means == pytest.approx(np.full(6, 0.5), abs=0.02)
    else:  # how likely each is among three drawn without putting back, by going through all orders
        weight = 1 / np.arange(1.0, 7)
        likely = np.zeros(6)
        for a in range(6):
            for b in set(range(6)) - {a}:
                for c in set(range(6)) - {a, b}:
                    rest = weight.sum()
                    chance = (
                        weight[a] / rest * weight[b] / (rest - weight[a]) * weight[c] / (rest - weight[a] - weight[b])
                    )
                    likely[[a, b, c]] += chance
        assert means == pytest.approx(likely, abs=0.02)


@pytest.mark.parametrize(
    "text",
    ['{"counts": [[5, 0, 0, 1], [0, 3, 3, 0]]}', "[[5, 0, 0, 1], [0, 3, 3, 0]]", '{"0": [5, 0, 0, 1], "1": [0, 3, 3, 0]}',
     '{"layers": [{"name": "a", "counts": [5, 0, 0, 1]}, {"name": "b", "counts": [0, 3, 3, 0]}]}'],
)  # fmt: skip
def test_counts_of_a_file_are_those_of_its_layers(text: str, tmp_path: Path) -> None:
    """Each layer has its own shares, and only its own."""
    (tmp_path / "c.json").write_text(text)
    of = setup({**SMALL, "experts": 4, "top_k": 1}, routing={"by": "file", "counts": "c.json"})
    shares = popularity(of.settings.routing, of.model, tmp_path)
    assert shares == pytest.approx(np.array([[5 / 6, 0, 0, 1 / 6], [0, 0.5, 0.5, 0]]))
    counts = draws(shares, 1, grid(300), 0)
    chosen = realised(2, len(counts), 2, 5, 0)
    assert (counts[chosen[:, 0]][..., [1, 2]] == 0).all() and (counts[chosen[:, 1]][..., [0, 3]] == 0).all()
    assert counts[chosen[:, 0], 256].mean(0)[0] / 256 == pytest.approx(5 / 6, abs=0.05)


def test_arrivals_are_as_asked() -> None:
    for arrivals, spread in (("poisson", 1.0), ("even", 0.0)):
        of = setup(
            SMALL, requests={"count": 4000, "arrivals": arrivals, "rate": "8/s", "input": {"mean": 100, "std": 20}}
        )
        trace = trace_of(of.settings.requests, Path())
        gaps = np.diff(trace.arrival)
        assert gaps.mean() == pytest.approx(1 / 8, rel=0.05) and gaps.std() * 8 == pytest.approx(spread, abs=0.05)
        assert trace.input.mean() == pytest.approx(100, rel=0.02) and trace.input.std() == pytest.approx(20, rel=0.05)
        assert (trace.output == 1024).all()


def test_a_queue_that_fills_up_makes_first_tokens_wait() -> None:
    """The paper's Fig. 13: above what a server can do, waiting for the first token grows without end."""
    waits = []
    for rate in ("1/s", "200/s"):
        of = setup(MIXTRAL, hardware={"devices": 4}, serving={"batch": 16},
                   requests={"count": 80, "arrivals": "poisson", "rate": rate, "input": 300, "output": 60})  # fmt: skip
        trace = trace_of(of.settings.requests, Path())
        told = run(of, trace, layers(of, most_tokens(of, trace)), 10**6, ["gpu", "duplex"])
        waits.append({s: f["first_token"]["p99"] for s, f in told.items()})
    assert waits[1]["gpu"] > 5 * waits[0]["gpu"]
    assert waits[1]["duplex"] < waits[1]["gpu"]


def throughput(
    model: dict[str, Any] = MIXTRAL, schemes: tuple[Any, ...] = ("gpu", "best", "duplex"), **more: Any
) -> dict[str, float]:
    given_ = {
        "hardware": {"devices": 4},
        "serving": {"batch": 32},
        "requests": {"count": 100, "input": 256, "output": 64},
        **more,
    }
    of = setup(model, **given_)
    trace = trace_of(of.settings.requests, Path())
    room = memory_of(of, trace)["tokens"]
    told = run(of, trace, layers(of, most_tokens(of, trace)), room, schemes)
    return {s: f["tokens_a_second"] for s, f in told.items()}


def test_directions_of_the_paper() -> None:
    """Larger batches leave less to win, more bandwidth wins more; unlike experts are what splitting them is for."""

    def won(**more: Any) -> float:
        found = throughput(**more)
        return found["duplex"] / found["gpu"]

    batches = [won(serving={"batch": b}) for b in (16, 32, 96)]
    assert batches[0] > batches[1] > batches[2] > 1
    near = [won(hardware={"devices": 4, "pim": {"bandwidth": f"{b}x"}}) for b in (2, 4, 8)]
    assert near[0] < near[1] < near[2]
    gains = []
    for by in ("uniform", "zipf"):
        found = throughput(routing={"by": by, "exponent": 1.5}, serving={"batch": 96})
        gains.append(found["duplex"] / found["best"])
    assert gains[1] > gains[0] > 1


def test_best_is_within_both_on_the_same_requests() -> None:
    found = throughput(schemes=SCHEMES)
    assert found["best"] >= max(found["gpu"], found["pim"])
    assert (
        found["duplex"]
        >= max(found["experts"], found["attention"])
        >= min(found["experts"], found["attention"])
        >= found["best"]
    )


def test_figures_count_while_the_batch_is_full() -> None:
    """Closed: neither the first batch, that starts in step, nor the last, that runs dry."""
    of = setup(SMALL, requests={"count": 40, "input": 20, "output": {"low": 5, "high": 15}}, serving={"batch": 8})
    trace = trace_of(of.settings.requests, Path())
    costs = Costs(of, "gpu", layers(of, 300))
    served = serve(trace, ticking, batch=8, room=10**6)
    told = figures_of(costs, trace, served)
    low, high = np.sort(served.last)[7], served.admitted.max()
    ends = served.begin + served.seconds
    inside = (ends > low) & (ends <= high)
    given_ = (served.stages.decoding + served.stages.ended)[inside].sum()
    assert told["tokens_a_second"] == pytest.approx(given_ / (high - low))
    assert told["mean_batch"] == pytest.approx(8)


@pytest.mark.slow
def test_ten_thousand_requests_in_seconds() -> None:
    import time

    of = setup(MIXTRAL, hardware={"devices": 4}, requests={"count": 10_000, "input": {"mean": 1024, "std": 100}, "output": {"mean": 1024, "std": 100}})  # fmt: skip
    trace = trace_of(of.settings.requests, Path())
    began = time.process_time()
    run(of, trace, layers(of, most_tokens(of, trace)), 10**7, ["gpu", "duplex"])
    assert time.process_time() - began < 20  # some 160,000 stages of each
