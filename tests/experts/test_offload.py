"""Offloaded experts: caches against a naive simulator and all there is to choose, the same logits, what is held and read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.core.errors import Refused, UsageError
from nett.core.torch_model import quiet
from nett.experts.caching import Cache, next_uses, rate_of
from nett.experts.expert_traces import Steps, padded, read_steps, write_steps
from nett.experts.offloading import Offloaded
from nett.experts.page_cache import cached_bytes, drop
from support.cli import nett as command
from support.mixtures import FAMILIES, write_mixture


def trace(seed: int, steps: int, experts: int, width: int, *, vary: bool = False) -> list[list[int]]:
    """Sets of experts that drift: each step keeps some of the step before."""
    rng, rows, now = np.random.default_rng(seed), [], list[int]()
    for _ in range(steps):
        count = int(rng.integers(1, width + 1)) if vary else width
        kept = [e for e in now if rng.random() < 0.6][:count]
        rest = [int(e) for e in rng.permutation(experts) if e not in kept]
        now = sorted(kept + rest[: count - len(kept)])
        rows.append(now)
    return rows


def simulated(rows: list[list[int]], size: int, policy: str, span: int) -> int:
    """Hits, by looking everything up anew at each step."""
    held: list[int] = []
    hits = 0
    for t, row in enumerate(rows):
        past = rows[: t + 1]

        def last(e: int, past: list[list[int]] = past) -> int:
            return max((i + 1 for i, r in enumerate(past) if e in r), default=0)

        def worth(e: int, t: int = t, past: list[list[int]] = past) -> tuple[Any, ...]:
            use = {
                "lru": lambda: 0,
                "lfu": lambda: sum(e in r for r in past),
                "segment": lambda: sum(e in r for r in past[-span:]),
                "foresight": lambda: sum(e in r for r in rows[t : t + span]),
                "optimum": lambda: -min((i for i in range(t + 1, len(rows)) if e in rows[i]), default=len(rows)),
            }[policy]()
            return (use, last(e, past))

        hits += len(set(row) & set(held))
        for e in sorted((e for e in row if e not in held), key=lambda e: (*worth(e), e)):
            if len(held) == size:
                held.remove(min(held, key=lambda h: (h in row, *worth(h), h)))
            held.append(e)
    return hits


@pytest.mark.parametrize("policy", ["lru", "lfu", "segment", "foresight", "optimum"])
def test_policies_against_a_naive_simulator(policy: str) -> None:
    """Caches smaller than a step among them."""
    for seed in range(4):
        rows = trace(seed, 40, 8, 3, vary=seed % 2 == 1)
        for size in (1, 2, 3, 4, 6, 8):
            found = rate_of(padded(rows), 8, size, policy, 5)
            assert found.requests == sum(map(len, rows)) and found.first == len({e for r in rows for e in r})
            assert found.hits == simulated(rows, size, policy, 5)


def best(rows: list[list[int]], size: int) -> int:
    """Most hits of all ways to evict: what a step asks for is in the cache after it."""
    states = {frozenset[int](): 0}
    for row in rows:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            rest, gained = sorted(held - set(row)), hits + len(held & set(row))
            for count in range(min(len(rest), size - len(row)) + 1):
                for kept in combinations(rest, count):
                    state = frozenset(row) | frozenset(kept)
                    after[state] = max(after.get(state, 0), gained)
        states = after
    return max(states.values())


def test_the_optimum_is_one() -> None:
    for seed in range(12):
        rows = trace(seed, 14, 6, 2)
        for size in (2, 3, 4):
            most = best(rows, size)
            assert rate_of(padded(rows), 6, size, "optimum").hits == most
            assert all(rate_of(padded(rows), 6, size, p).hits <= most for p in ("lru", "lfu", "segment", "foresight"))


def test_by_hand() -> None:
    """One expert a step, two slots: 0 1 0 2 0 1. LRU has 0 again twice; the optimum keeps 0 and misses 1 once more."""
    rows = padded([[0], [1], [0], [2], [0], [1]])
    assert rate_of(rows, 3, 2, "lru") == (6, 2, 3)
    assert rate_of(rows, 3, 2, "optimum").hits == 2 and rate_of(rows, 3, 3, "lru").share == 0.5
    assert next_uses(rows)[:, 0].tolist() == [2, 5, 4, 6, 6, 6]


@pytest.mark.parametrize("policy", ["lru", "lfu", "segment"])
def test_a_running_cache_is_that_of_the_trace(policy: Any) -> None:
    rows = trace(3, 200, 16, 4, vary=True)
    for size in (2, 4, 7):
        cache = Cache(16, size, policy, 8)
        for row in rows:
            served = cache.step(row)
            assert sorted(e for e, _, _ in served) == row
            if len(row) <= size:
                assert {int(cache.held[s]) for _, s, _ in served} == set(row)
        assert (cache.requests, cache.hits) == rate_of(padded(rows), 16, size, policy, 8)[:2]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """How products are rounded depends on how many threads there are, and with several on how busy the machine is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_memory(folder: Path, ids: Any, step: int, kind: Any = torch.float32) -> Any:
    import transformers

    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=kind).eval()
    model.set_experts_implementation("eager")
    for value in [*model.parameters(), *model.buffers()]:
        value.data = (
            value.data.clone()
        )  # out of the file's mapping: how products are rounded depends on where numbers lie
    return stepwise(model, ids, step)


def stepwise(model: Any, ids: Any, step: int) -> Any:
    past, found = None, []
    with torch.no_grad():
        for at in range(0, ids.shape[1], step):
            out = model(input_ids=ids[:, at : at + step], past_key_values=past, use_cache=True)
            past = out.past_key_values
            found.append(out.logits)
    return torch.cat(found, 1)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_to_the_bit(family: str, tmp_path: Path) -> None:
    """With three of six experts in memory, one token at a time, and with one, five at a time; what is read is what was
    missed, and what is held is what was asked for."""
    folder, ids = write_mixture(tmp_path / "model", family, experts=6), torch.arange(3, 33)[None]
    for size, step in ((3, 1), (1, 5)):
        with Offloaded(str(folder), size) as offloaded:
            assert torch.equal(stepwise(offloaded.model, ids, step), in_memory(folder, ids, step))
            misses = sum(c.requests - c.hits for c in offloaded.caches)
            one = 3 * offloaded.layers[0].width * 32 * 4
            assert offloaded.bytes_read == misses * one > 0
            whole = sum(layer.nbytes for layer in offloaded.layers)
            assert offloaded.held_bytes["experts"] == whole * size // 6
            buffers = sum(b.nbytes for n, b in offloaded.model.named_buffers() if "e_score" not in n)
            assert offloaded.held_bytes["dense"] - buffers == offloaded.checkpoint.nbytes - whole
            asked = offloaded.steps
            assert asked.count == -(-30 // step) and asked.chosen == 2


@pytest.mark.usefixtures("one_thread")
def test_bfloat16(tmp_path: Path) -> None:
    folder = write_mixture(tmp_path / "model")
    half = tmp_path / "half"
    command("convert", str(folder), str(half), "--dtype", "bfloat16").succeeded()
    ids = torch.arange(3, 33)[None]
    with Offloaded(str(half), 2) as offloaded:
        assert offloaded.model.dtype == torch.bfloat16
        assert torch.equal(stepwise(offloaded.model, ids, 1), in_memory(half, ids, 1, torch.bfloat16))


def test_traces_as_files(tmp_path: Path) -> None:
    steps = Steps([padded(trace(i, 20, 6, 2, vary=i == 1)) for i in range(3)], [6, 6, 6], 2)
    write_steps(tmp_path / "t.jsonl", steps)
    again = read_steps(tmp_path / "t.jsonl")
    assert all((a == b).all() for a, b in zip(steps.wanted, again.wanted, strict=True)) and again.experts == [6, 6, 6]
    np.save(tmp_path / "t.npy", np.stack([steps.wanted[0], steps.wanted[2]], 1))
    array = read_steps(tmp_path / "t.npy")
    assert (array.wanted[1] == steps.wanted[2]).all() and array.chosen == 2
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    for number, line, what in (
        (1, '{"experts": [6]}', "no line of a trace"),
        (3, "[[0], [9], [1]]", "no step of mixtures"),
        (4, "[[0], [1]]", "no step of mixtures"),
    ):
        (tmp_path / "bad.jsonl").write_text("\n".join([*lines[: number - 1], line, *lines[number:]]))
        with pytest.raises(Refused, match=rf"bad.jsonl:{number}: .*{what}"):
            read_steps(tmp_path / "bad.jsonl")
    np.save(tmp_path / "bad.npy", np.zeros((3, 2)))
    with pytest.raises(Refused, match="which is no trace"):
        read_steps(tmp_path / "bad.npy")


def test_what_the_system_keeps(tmp_path: Path) -> None:
    file = tmp_path / "file"
    made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DSYNC)  # on the disk: what is not is never dropped
    os.write(made, bytes(1 << 20))
    os.close(made)
    if cached_bytes(file) is None:
        pytest.skip("this system does not tell")
    file.read_bytes()
    assert cached_bytes(file) == 1 << 20
    drop(file)
    if cached_bytes(file) == 1 << 20:
        pytest.skip("this file system drops nothing")
    assert cached_bytes(file) == 0


def test_command(mixtral: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["sun", "road", "river", "letter"], 400)))
    base = ("experts", "offload")
    files = [w for n in ("json", "html") for w in (f"--{n}", str(tmp_path / f"told.{n}"))]
    options = ("--text", str(text), "--experts", "3", "--samples", "2", "--length", "24", "--threads", "1", "--compare")
    said = command(*base, str(mixtral), *options, *files, "--record", str(tmp_path / "t.jsonl")).succeeded().out
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["whole"]["largest_difference"] == 0 and "tokens/s" in said and "optimum (looks ahead)" in said
    rates = {(p["experts"], p["policy"]): p for p in told["policies"]}
    assert told["run"]["hits"] == rates[3, "lru"]["hits"] and told["run"]["requests"] == 2 * 2 * 24 * 2
    assert rates[3, "lru"]["rate"] <= rates[3, "optimum"]["rate"] and rates[3, "optimum"]["bound"]
    assert rates[4, "lru"]["hits"] == told["run"]["requests"] - 8  # all fit: only first uses are missed
    assert (tmp_path / "told.html").read_text().count("<svg") >= 1
    replayed = nett.experts.offload([str(tmp_path / "t.jsonl")], experts=3)
    assert replayed["policies"] == told["policies"]
    command(*base, str(mixtral)).failed(2, "runs a model on a text")
    command(*base, str(tmp_path / "none.jsonl")).failed(3, "no such trace")
    with pytest.raises(UsageError, match="mean nothing"):
        nett.experts.offload([str(tmp_path / "t.jsonl")], text=text)
