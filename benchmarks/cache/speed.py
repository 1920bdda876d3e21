"""What a policy costs in time: 256 tokens one by one after a prompt of 2,048 on SmolLM2-135M, against transformers' plain
cache, and the prompt itself against the plain prompt. One thread, float32, half of the cache.

Policies that make keys and values again at every step are slower on a CPU by the arithmetic that they add: that is given, and
their time without a bar. kvpress' presses act once, after the prompt; ours that it also has are set beside them that way
(``once``), each as a ratio to the plain cache of its own environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.cache import bed, peers

from nett.core.bench import Figure, Outcome, Series
from nett.core.errors import NettError, Refused

TITLE = "nett cache: wall time of policies against the plain cache"
WORKER = Path(__file__).resolve().parent / "time_worker.py"
SHARE, ROUNDS = 0.5, 3
DROPPING = ("window", "random", "knorm", "h2o", "snapkv", "expected_attention", "kvmerger", "ems")
CODING = ("kivi", "fp8")
REMAKING = ("xquant", "xquant_cl")
BOTH = ("knorm", "window", "snapkv", "expected_attention")  # that kvpress has, too
Say = Callable[[str], None]
Run = tuple[float, float, float, float, float]  # seconds of the prompt, of what follows; CPU seconds of both; load
Times = dict[str, list[Run]]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    import torch

    import nett
    from nett.core import torch_model
    from nett.core.windows import read_windows

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    beds = bed.build_pico(work / "bed") if pico else bed.build(work / "bed", say)
    folder, text = next(iter(beds.found.values()))
    context, follow, rounds = (64, 8, 1) if pico else (2048, 256, ROUNDS)
    length = context + follow
    windows = read_windows(text, torch_model.tokenizer(folder), samples=1, length=length, vocabulary=1 << 30)
    model = nett.load(folder, as_model=True).float().eval()
    ways: dict[str, Any] = {"full": None}
    ways |= {n: getattr(nett.cache, n)(budget=SHARE) for n in DROPPING}
    ways |= {n: getattr(nett.cache, n)() for n in CODING}
    ways |= {f"{n}, once": getattr(nett.cache, n)(budget=SHARE, when="prefill") for n in BOTH}
    ways |= {n: getattr(nett.cache, n)(group=32) for n in REMAKING}
    times: Times = {}
    ids = torch.from_numpy(windows.ids)
    for turn in range(rounds):
        for name, policy in list(ways.items())[:: 1 if turn % 2 else -1]:
            if name in REMAKING and turn:
                continue
            if not turn:
                timed(model, policy, ids[:, : context // 32 + 4], context // 32)  # what is imported and made once
            few = ids[:, : context + 16] if name in REMAKING and not pico else ids
            times.setdefault(name, []).append((*timed(model, policy, few, context), os.getloadavg()[0]))
            say(
                f"{name}: prompt {times[name][-1][0]:.2f} s, {few.shape[1] - context} tokens {times[name][-1][1]:.2f} s"
            )
    figures = _figures(times, model, context, follow, 8 if pico else 16)
    peer = peers.python(say, make=not pico)
    skipped, versions = {}, dict[str, str]()
    if peer is None:
        skipped["kvpress"] = "--pico makes no environment for it"
    else:
        figures += _beside(times, _theirs(peer, folder, windows.ids, context, rounds, work, say))
        versions = peers._versions(peer)
    return Outcome(figures, versions, skipped)


def timed(model: Any, policy: Any, ids: Any, context: int) -> tuple[float, float, float, float]:
    """Seconds of the prompt, of the tokens that follow one by one; CPU seconds of both."""
    from contextlib import nullcontext

    import torch
    from transformers import DynamicCache

    with torch.no_grad(), policy.on(model) if policy is not None else nullcontext():
        cache = policy.cache(model) if policy is not None else DynamicCache(config=model.config)
        marks = [(time.perf_counter(), time.process_time())]
        model(ids[:, :context], past_key_values=cache, logits_to_keep=1)
        marks.append((time.perf_counter(), time.process_time()))
        for at in range(context, ids.shape[1]):
            model(ids[:, at : at + 1], past_key_values=cache)
        marks.append((time.perf_counter(), time.process_time()))
    (wall, cpu), (more_wall, more_cpu) = ((b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks))
    return wall, more_wall, cpu, more_cpu


def _series(name: str, times: Times, which: int, tokens: int = 1) -> Series:
    return Series(name, "s", [t[which] / tokens for t in times[name]], [t[4] for t in times[name]])


def _cpu(name: str, times: Times, which: int) -> str:
    """In words, for a machine that others work on, too."""
    mine, plain = (median(t[2 + which] for t in times[n]) for n in (name, "full"))
    return f"CPU time {mine / plain:.3f} of the plain cache's"


def _figures(times: Times, model: Any, context: int, follow: int, few: int) -> list[Figure]:
    figures = []
    for name in (*DROPPING, *CODING):
        bar = 1.1 if name in DROPPING else None
        pair = _series(name, times, 1), _series("full", times, 1)
        figures.append(Figure(f"{follow} tokens after {context}, {name}", *pair, bar=bar, note=_cpu(name, times, 1)))
        bar = 1.15 if name in DROPPING else None
        pair = _series(name, times, 0), _series("full", times, 0)
        figures.append(Figure(f"prompt of {context}, {name}", *pair, bar=bar, note=_cpu(name, times, 0)))
    for name in REMAKING:
        note = (
            f"makes keys and values again: {arithmetic(model.config, context + few // 2):.1f} times a step's products"
        )
        pair = (_series(name, times, 1, few), _series("full", times, 1, follow))
        figures.append(Figure(f"a token after {context}, {name}", *pair, note=note))
    return figures


def arithmetic(config: Any, tokens: int) -> float:
    """Multiplications of queries, keys and values of all held tokens at a step, twice with grouped heads, in those of a
    step of the plain model."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    width = int(getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    projections = hidden * (queries + 2 * keys)
    block = projections + queries * hidden + 3 * hidden * config.intermediate_size + 2 * tokens * queries
    step = layers * block + hidden * config.vocab_size
    grouped = 2 if 2 * keys <= hidden else 1
    return layers * tokens * projections * grouped / step


def _theirs(
    peer: Path, model: Path, ids: np.ndarray, context: int, rounds: int, work: Path, say: Say
) -> dict[str, list[tuple[float, float]]]:
    np.save(work / "time-ids.npy", ids)
    asked = {
        "model": str(model), "ids": str(work / "time-ids.npy"), "context": context, "share": SHARE, "rounds": rounds,
    }  # fmt: skip
    (work / "time.json").write_text(json.dumps(asked), encoding="utf-8")
    how = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([peer, WORKER, work / "time.json"], capture_output=True, text=True, env=how)
    if done.returncode:
        raise NettError(f"kvpress ended with exit code {done.returncode}: {done.stderr[-600:]}", where=work)
    found: dict[str, list[tuple[float, float]]] = {}
    for line in done.stdout.splitlines():
        one = json.loads(line)
        found.setdefault(one["name"], []).append((one["prompt"], one["follow"]))
        say(f"kvpress, {one['name']}: prompt {one['prompt']:.2f} s, tokens {one['follow']:.2f} s")
    if "full" not in found:
        raise Refused("kvpress said nothing", where=work)
    return found


def _beside(times: Times, theirs: dict[str, list[tuple[float, float]]]) -> list[Figure]:
    """Ratios to the plain cache, of each tool in its own environment."""
    figures = []
    for which, what in enumerate(("prompt", "tokens that follow")):
        own, other = (median(t[which] for t in rows) for rows in (times["full"], theirs["full"]))
        for name in BOTH:
            mine = Series("nett", "x plain", [t[which] / own for t in times[f"{name}, once"]])
            press = Series("kvpress", "x plain", [t[which] / other for t in theirs[name]])
            figures.append(Figure(f"{what}, {name} once", mine, press, bar=1.0))
    return figures
