"""Rows of embeddings that no text can reach."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, NamedTuple, final

import numpy as np

from nett.core.dtypes import Array, Dtype
from nett.core.edge import Edge
from nett.core.layers import is_vocabulary
from nett.core.moved import as_numbers
from nett.core.registry import method
from nett.core.sweep import Fold, Pass
from nett.scan.protocol import Asset, Finding, Findings, Probe, SideFile, Study, probe

_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_MOST_IDS = 1 << 31
_BLOCK = 1 << 18  # elements read at once


@method(title="Unused embedding rows", kind="measure", guarantee="measured", grain="stream", command=True)
@probe
def unused_embeddings(assets: Sequence[Asset]) -> Probe:
    """Find embedding rows whose ids the tokenizer never gives.

    Rows past the tokenizer's end (padding to a round number), and ids inside it that belong to no token. Said for
    each: how many of the rows are zero, and how many equal the first of them.

    When to use: on checkpoints with tokenizer.json (or vocab.json) beside the weights, and on GGUF files.
    When not: where other code feeds ids of its own, such as placeholders for images; those rows are used.
    Guarantee: exact where all rows are equal, so that one row rebuilds them; measured otherwise, with the error
        as the rows' share of the tensor's norm. An output head without the rows cannot give them probability.
    Cost: the unused rows, and one reading of the embeddings shared with the other probes.
    Source: no paper.
    """
    files = [SideFile(asset, name) for asset in assets for name in _FILES]
    yield files
    content = {(f.asset, f.name): f.answer for f in files}
    vocabularies = {a: ids for a in assets if (ids := _ids_inside(a) or used_ids([content[a, n] for n in _FILES]))}
    wanted = [
        (asset, name, unused)
        for asset, ids in vocabularies.items()
        for name in _embeddings(asset, max(ids) + 1)
        if len(unused := np.setdiff1d(np.arange(asset.checkpoint.tensors[name].shape[0]), np.fromiter(ids, np.int64)))
    ]
    rows = [Study((asset.source(name),), functools.partial(_look_at, unused)) for asset, name, unused in wanted]
    norms = [Pass((asset.source(name),), Squares(asset.checkpoint.tensors[name].dtype)) for asset, name, _ in wanted]
    yield [*rows, *norms]
    found, figures = [], {asset.path: {"tokens": len(ids)} for asset, ids in vocabularies.items()}
    for (asset, name, unused), study, norm in zip(wanted, rows, norms, strict=True):
        seen: Rows = study.answer
        found.append(Finding(_edge(asset, name, len(unused), seen, norm.answer)))
        figures[asset.label(name)] = {
            "unused_rows": len(unused),
            "past_the_end": int(np.count_nonzero(unused > max(vocabularies[asset]))),
            "zero_rows": seen.zero,
            "equal_rows": seen.equal,
        }
    return Findings(tuple(found), figures)


def _ids_inside(asset: Asset) -> set[int]:
    """Ids of the tokenizer that a GGUF file carries: one a token, from 0."""
    count = asset.checkpoint.metadata.get("tokenizer.ggml.tokens")  # of arrays, headers tell the length
    return set(range(count)) if isinstance(count, int) else set()


def used_ids(contents: Sequence[Any]) -> set[int]:
    """Ids that a tokenizer gives, from its JSON files (tokenizer.json, vocab.json, added_tokens.json); else empty."""
    whole, vocab, added = contents
    if isinstance(whole, Mapping) and isinstance(whole.get("model"), Mapping):
        table = whole["model"].get("vocab")
        extra = whole.get("added_tokens") or []
        more = _ids({i: t.get("id") for i, t in enumerate(extra) if isinstance(t, Mapping)})
        if isinstance(table, list):  # Unigram: a list of [token, score], ids by position
            return set(range(len(table))) | more
        return _ids(table) | more
    return (_ids(vocab) | _ids(added)) if isinstance(vocab, Mapping) else set()


def _ids(table: Any) -> set[int]:
    """Tokens' ids; what cannot be one (negative, no whole number) is left out."""
    found = table.values() if isinstance(table, Mapping) else ()
    return {v for v in found if type(v) is int and 0 <= v < _MOST_IDS}


def _embeddings(asset: Asset, rows: int) -> list[str]:
    """Float matrices called as embeddings are, with at least ``rows`` rows."""
    named = [t for t in asset.checkpoint.tensors.values() if is_vocabulary(t.name)]
    return [t.name for t in named if len(t.shape) == 2 and t.shape[0] >= rows and t.dtype.is_float]


class Rows(NamedTuple):
    """What unused rows hold: how many are zero, how many equal the first, and their squared norm."""

    zero: int
    equal: int
    square: float


def _look_at(unused: Array, source: Any) -> Rows:
    """Read the rows in runs of neighbours, some at a time."""
    columns = source.shape[1]
    first: Array | None = None
    zero, equal, square = 0, 0, 0.0
    for start, stop in _runs(unused, max(1, _BLOCK // max(1, columns))):
        rows = source.values(start * columns, stop * columns).reshape(-1, columns).astype(np.float64)
        first = rows[0] if first is None else first
        zero += int(np.count_nonzero(~rows.any(axis=1)))
        equal += int(np.count_nonzero((rows == first).all(axis=1)))
        square += float(np.sum(np.square(rows)))
    return Rows(zero, equal, square)


def _runs(ids: Array, longest: int) -> Iterator[tuple[int, int]]:
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    for run in np.split(ids, breaks):
        for at in range(0, len(run), longest):
            part = run[at : at + longest]
            yield int(part[0]), int(part[-1]) + 1


@final
class Squares(Fold):
    """The sum of squares of a tensor's elements, in float64."""

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = dtype

    def look(self, pieces: Sequence[Array]) -> float:
        values = as_numbers(pieces[0], self._dtype).astype(np.float64)
        return float(np.sum(np.square(values)))

    def join(self, before: Any, unit: float) -> float:
        return (before or 0.0) + unit


def _edge(asset: Asset, name: str, count: int, seen: Rows, norm: float) -> Edge:
    info = asset.checkpoint.tensors[name]
    alike = seen.equal == count
    error = 0.0 if alike else sqrt(seen.square / norm) if norm and isfinite(seen.square / norm) else None
    freed = info.nbytes * count // info.shape[0]
    return Edge(
        "unused_embedding_rows", asset.label(name), (), None, freed, None, error, "exact" if alike else "measured"
    )
