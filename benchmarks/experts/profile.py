"""``nett experts profile`` beside the plain forward pass of the same windows by transformers: what it costs to look.

CPU time of one thread, which other work on the machine hardly changes. Weights are random (the time does not depend on them)
and lie in memory on both sides; the plain pass goes without its output layer, as the profile does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from benchmarks.measure import in_turn
from claims.mixture_bed import write_tokenizer
from claims.mixture_texts import texts

from nett.core.bench import Figure, Outcome, versions
from nett.core.errors import NettError
from nett.core.torch_model import quiet
from nett.experts.opening import Opened, opened
from nett.experts.profile_figures import about_layer, about_model
from nett.experts.profiling import measured, profile_of
from nett.experts.tracing import HELD

TITLE = "profile of a mixture: what it costs beside the plain forward pass"
LENGTH, BATCH = 512, 1024  # tokens of a window, and of a call of the model
BAR = 0.9
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bed:
    """A Mixtral of random weights."""

    name: str
    hidden: int
    width: int
    layers: int
    experts: int
    chosen: int
    windows: int


BEDS = (
    Bed("8 experts, 2 chosen", 128, 256, 4, 8, 2, 32),
    Bed("64 experts, 8 chosen", 256, 128, 4, 64, 8, 32),
)
PICO = (Bed("pico, 4 experts, 2 chosen", 32, 16, 2, 4, 2, 4),)


def run(work: Path, say: Say, pico: bool) -> Outcome:
    torch.set_num_threads(1)
    figures = []
    for bed in PICO if pico else BEDS:
        folder, text = _written(work, bed)
        ids = _windows(text, bed.windows)
        plain = _plain(folder)
        with opened(str(folder), threads=1) as model, model.skeleton.held():
            _check(model, plain, ids)
            passes, whole = "nett, passes and figures", "nett, from the files to the figures"
            theirs, loading = "transformers, forward pass", "transformers, from the files to the hidden states"
            times = 1 if pico else 3
            told = in_turn(
                {
                    passes: (times, lambda: ids.numel() / _spent(lambda: _profiled(model, ids))),  # noqa: B023
                    theirs: (times, lambda: ids.numel() / _spent(lambda: _forward(plain, ids))),  # noqa: B023
                    whole: (times, lambda: ids.numel() / _spent(lambda: _command(folder, text, bed))),  # noqa: B023
                    loading: (times, lambda: ids.numel() / _spent(lambda: _loaded(folder, text, bed))),  # noqa: B023
                },
                "tokens a CPU second",
                say,
            )
        commands = {
            passes: "nett.experts.profiling.measured and what is told of it",
            theirs: "model.model(input_ids, use_cache=False)",
            whole: f"nett experts profile MODEL --text FILE --samples {bed.windows}",
            loading: "from_pretrained, tokenizer, model.model(input_ids, use_cache=False)",
        }
        done = {name: replace(series, command=commands[name]) for name, series in told.items()}
        note = f"{ids.numel():,} tokens, hidden size {bed.hidden}, experts of {bed.width} neurons, {bed.layers} layers"
        figures.append(
            Figure(f"throughput, {bed.name}", done[passes], done[theirs], bar=BAR, sense="at least", note=note)
        )
        figures.append(
            Figure(f"throughput with reading, {bed.name}", done[whole], done[loading], sense="at least", note=note)
        )
    return Outcome(figures, versions(["torch", "transformers"]))


def _written(work: Path, bed: Bed) -> tuple[Path, Path]:
    """The model's folder and a text; what is there is kept."""
    text = work / "prose.txt"
    if not text.is_file():
        text.write_bytes(texts(400_000).learn["prose"])
    folder = work / "-".join(str(v) for v in (bed.hidden, bed.width, bed.layers, bed.experts, bed.chosen))
    if not (folder / "tokenizer_config.json").is_file():
        torch.manual_seed(0)
        config = transformers.MixtralConfig(
            vocab_size=256, hidden_size=bed.hidden, intermediate_size=bed.width, num_hidden_layers=bed.layers,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=bed.experts, num_experts_per_tok=bed.chosen,
            max_position_embeddings=LENGTH, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        with quiet():
            transformers.MixtralForCausalLM(config).float().save_pretrained(folder)
        write_tokenizer(folder)
    return folder, text


def _windows(text: Path, count: int) -> Any:
    found = np.frombuffer(text.read_bytes(), np.uint8).astype(np.int64)
    return torch.from_numpy(found[: count * LENGTH].reshape(count, LENGTH))


def _plain(folder: Path) -> Any:
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def _forward(model: Any, ids: Any) -> None:
    with torch.no_grad():
        for part in ids.split(BATCH // LENGTH):
            model.model(input_ids=part, use_cache=False)


def _profiled(model: Opened, ids: Any) -> dict[str, Any]:
    rounds = [(0, part) for part in ids.split(HELD // LENGTH)]
    found = measured(model, rounds, 1, LENGTH, 128)
    layers = [about_layer(*one, ["text"]) for one in zip(model.layers, found.tallies, found.cosines, strict=True)]
    return {"layers": layers, **about_model(model.layers, found.tallies, found.shared, 0.9)}


def _command(folder: Path, text: Path, bed: Bed) -> None:
    told = profile_of(
        str(folder), text=str(text), samples=bed.windows, length=LENGTH, similar=128, hits=0.9, device="cpu", threads=1
    )
    json.dumps(told)


def _loaded(folder: Path, text: Path, bed: Bed) -> None:
    model = _plain(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8", errors="replace"), verbose=False)["input_ids"])
    _forward(model, ids[: bed.windows * LENGTH].reshape(bed.windows, LENGTH))


def _spent(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _check(model: Opened, plain: Any, ids: Any) -> None:
    """What is timed is right: choices counted as transformers' own router makes them; and all is compiled and warm."""
    told = _profiled(model, ids[:2])
    counted: list[Any] = []
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda m, given: counted.append(torch.bincount(given[1].flatten())))
        for layer in plain.model.layers
    ]
    _forward(plain, ids[:2])
    for handle in handles:
        handle.remove()
    for layer, counts in zip(told["layers"], counted, strict=True):
        if layer["counts"][: len(counts)] != counts.tolist():
            raise NettError("the profile does not count what transformers routes")
