"""The work of ``nett experts profile``: texts through the model, what its routers chose added up, and what follows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import UsageError
from nett.core.progress import report
from nett.core.receipt import file_sha256
from nett.core.texts import named_files, tokenizer_of
from nett.core.windows import read_windows, stream_windows
from nett.experts.locality import cache_hits
from nett.experts.opening import Opened, opened
from nett.experts.profile_figures import about_layer, about_model, about_texts
from nett.experts.tally import Tally
from nett.experts.tracing import holding, traced

SEGMENTS = (4, 16, 64, 256)  # tokens, as in P17
SHARED = 4  # windows of each text on which one cache for all layers is tried
SHARE = 64  # of the work of a text, one part in so many goes into the outputs of all experts, at most


@final
@dataclass
class Profile:
    """What was added up: a tally for each mixture, the mean cosines of outputs (None where no token was sampled), tokens and
    windows of each text, and for each segment the hits of one cache for all layers."""

    tallies: list[Tally]
    cosines: list[Array | None]
    tokens: list[int]
    windows: list[int]
    shared: dict[int, Array]
    seconds: float = 0.0


def profile_of(
    asset: str,
    *,
    text: str,
    samples: int,
    length: int,
    similar: int,
    hits: float,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """See :func:`nett.experts.profile`."""
    files = {name: file for name, file in named_files(text, "text").items() if file is not None}
    if not files:
        raise UsageError(
            "looks at what routers choose on a text, so it needs one",
            where="experts/profile",
            hint="Add --text FILE (.txt, or .jsonl with an entry text), or --text NAME=FILE for each of several tasks.",
        )
    began = time.monotonic()
    with opened(asset, device, threads) as model:
        notes: list[str] = []
        most = int(getattr(model.skeleton.model.config.get_text_config(), "max_position_embeddings", 0) or length)
        if length > most:
            notes.append(f"windows of {most} tokens, as many as the model has positions, and not of {length}")
            length = most
        with ExitStack() as stack:
            context, size = holding(model)
            stack.enter_context(context)
            rounds = _Rounds(model, files, samples, length, max(1, size // length))
            found = measured(model, rounds, len(files), length, similar)
        layers = [
            about_layer(*both, list(files)) for both in zip(model.layers, found.tallies, found.cosines, strict=True)
        ]
        told: dict[str, Any] = {
            "model": asset,
            "length": length,
            "texts": [
                {"name": name, "file": str(file), "sha256": file_sha256(file), "tokens": n, "windows": w}
                for (name, file), n, w in zip(files.items(), found.tokens, found.windows, strict=True)
            ],
            "tokens": sum(found.tokens),
            **about_model(model.layers, found.tallies, found.shared, hits),
            "by_text": about_texts(list(files), found.tallies),
            "layers": layers,
            "notes": notes + _notes(layers, found, length),
        }
    return told | {"seconds_running": round(found.seconds, 2), "seconds": round(time.monotonic() - began, 2)}


@final
class _Rounds:
    """(number of a text, windows of a round), texts in turn; rounds of a sampled text are each spread over the whole of it."""

    def __init__(self, model: Opened, files: Mapping[str, Path], samples: int, length: int, each: int) -> None:
        self.model, self.files, self.samples, self.length, self.each = model, files, samples, length, each

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        import torch

        skeleton = self.model.skeleton
        tokenizer = tokenizer_of(skeleton.checkpoint)
        how: dict[str, Any] = {"length": self.length, "vocabulary": skeleton.vocabulary}
        for number, (name, file) in enumerate(self.files.items()):
            if not self.samples:
                report.begin(f"profiling {name}", file.stat().st_size // (4 * self.each * self.length), "rounds")
                for windows in stream_windows(file, tokenizer, batch=self.each, **how):
                    yield number, torch.from_numpy(windows)
                    report.step(1)
                continue
            ids = read_windows(file, tokenizer, samples=self.samples, **how).ids
            parts = -(-len(ids) // self.each)
            report.begin(f"profiling {name}", parts, "rounds")
            for part in range(parts):
                yield number, torch.from_numpy(np.ascontiguousarray(ids[part::parts]))
                report.step(1)
        report.end()


def measured(model: Opened, rounds: Iterable[tuple[int, Any]], texts: int, length: int, similar: int) -> Profile:
    """The tallies of all rounds. rounds: (number of a text, windows int64 ``[n, length]``), each text's together; similar:
    tokens of each text's first round on which the outputs of all experts are compared, at most."""
    segments = [m for m in SEGMENTS if m <= length]
    found = Profile(
        [Tally(layer.count, texts, segments) for layer in model.layers],
        [None] * len(model.layers),
        [0] * texts,
        [0] * texts,
        {m: np.zeros(sum(layer.count for layer in model.layers), np.int64) for m in segments},
    )
    dear = max(layer.count / layer.chosen for layer in model.layers)

    def sampled() -> Iterator[tuple[int, Any, int]]:
        for text, windows in rounds:
            most = max(16, int(windows.numel() / (dear * SHARE)))
            yield text, windows, min(similar, most, int(windows.numel())) if not found.windows[text] else 0

    began = time.monotonic()
    for text, layers in traced(model, sampled(), found.cosines):
        first, shape = found.windows[text], layers[0][0].shape
        for tally, (chosen, weights) in zip(found.tallies, layers, strict=True):
            tally.add(text, first, chosen, weights)
        _share(found.shared, [chosen for chosen, _ in layers], model, SHARED - first)
        found.windows[text] += shape[0]
        found.tokens[text] += shape[0] * shape[1]
    found.cosines = [None if c is None else c / max(1.0, float(c.diagonal().max())) for c in found.cosines]
    found.seconds = time.monotonic() - began
    return found


def _share(shared: Mapping[int, Array], chosen: Sequence[Array], model: Opened, most: int) -> None:
    """One cache for the experts of all layers, on the first windows."""
    starts = np.cumsum([0, *(layer.count for layer in model.layers)])
    for window in range(max(0, min(most, len(chosen[0])))):
        every = np.concatenate([c[window].astype(np.int32) + s for c, s in zip(chosen, starts, strict=False)], axis=1)
        for m, hits in shared.items():
            cache_hits(every, m, hits)


def _notes(layers: Sequence[Mapping[str, Any]], found: Profile, length: int) -> list[str]:
    said = []
    unused = [(layer["name"], len(layer["unused"])) for layer in layers if layer["unused"]]
    if unused:
        total = sum(n for _, n in unused)
        where = ", ".join(f"{n} in {name}" for name, n in unused[:4]) + (" …" if len(unused) > 4 else "")
        said.append(f"{total} experts were chosen by no token ({where})")
    short = [m for m in SEGMENTS if m > length]
    if short:
        said.append(f"segments of {', '.join(map(str, short))} tokens do not fit into windows of {length}")
    if sum(found.windows) < 8:
        said.append(f"{sum(found.windows)} windows are few: the intervals mean little")
    return said
