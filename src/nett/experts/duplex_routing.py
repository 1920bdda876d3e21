"""How many tokens each expert gets: drawn token by token, evenly, by Zipf's law, or by counts that were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.errors import Refused, UsageError
from nett.experts.duplex_dimensions import Dimensions
from nett.experts.duplex_settings import Routing

CYCLE = 2048  # tokens that are drawn one by one for a layer; longer stages repeat them
DRAWS = 64  # layers that are drawn, at least
Array = Any


def popularity(routing: Routing, model: Dimensions, folder: Path) -> Array:
    """Shares ``[1 or moe_layers, experts]`` by which a token's experts are drawn, each row summing up to 1."""
    if routing.by == "file":
        counts = read_counts(folder / str(routing.counts), model)
        return counts / counts.sum(1, keepdims=True)
    rank = np.arange(1.0, model.experts + 1)
    weight = rank ** -(routing.exponent if routing.by == "zipf" else 0.0)
    return (weight / weight.sum())[None]


def read_counts(file: Path, model: Dimensions) -> Array:
    """Counts ``[moe_layers, experts]`` from JSON: a list (or a record with ``counts``) for each layer, alone, under ``counts`` or
    ``layers``, or by name."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=file) from error
    except ValueError as error:
        raise UsageError(f"is no JSON: {error}", where=file) from error
    if isinstance(found, dict):
        found = next((found[k] for k in ("counts", "layers") if k in found), found)
    rows: Any = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(rows, list) or len(rows) != model.moe_layers:
        held = f"{len(rows)} layers" if isinstance(rows, list) else f"a {type(rows).__name__}"
        raise UsageError(f"holds {held}; the model has {model.moe_layers} layers with experts", where=file)
    rows = [_counts_of(row) for row in rows]
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != model.experts:
            held = f"{len(row)} counts" if isinstance(row, list) else f"a {type(row).__name__}"
            raise UsageError(f"layer {i}: {held}; the model has {model.experts} experts", where=file)
        good = all(isinstance(c, int | float) and not isinstance(c, bool) and 0 <= c < float("inf") for c in row)
        if not good or sum(c > 0 for c in row) < model.top_k:
            raise UsageError(
                f"layer {i}: counts are 0 or more, and above 0 for {model.top_k} experts at least", where=file
            )
    return np.array(rows, np.float64)


def _counts_of(row: Any) -> Any:
    return row["counts"] if isinstance(row, dict) and "counts" in row else row


def grid(most: int) -> Array:
    """Numbers of tokens for which layers are drawn: all up to 256, then steps of a fiftieth; between them costs are
    interpolated."""
    steps = 256 * 1.02 ** np.arange(1, 2 + np.ceil(np.log(max(most, 256) / 256) / np.log(1.02)))
    return np.unique(np.concatenate([np.arange(257), np.ceil(steps)])).astype(np.int64)


def draws(shares: Array, top_k: int, tokens: Array, seed: int) -> Array:
    """Tokens of each expert ``[layers drawn, tokens, experts]``, in layers that so many ``tokens`` pass.

    A token takes ``top_k`` different experts, one after the other by their shares (Gumbel's trick). Of ``shares`` ``[rows,
    experts]`` each row is drawn equally often, row by row. The same tokens come first in a short and in a long stage.
    """
    rng = np.random.default_rng([seed, 42])
    rows = [r for r in range(len(shares)) for _ in range(-(-DRAWS // len(shares)))]
    with np.errstate(divide="ignore"):
        logs = np.log(shares)
    found = np.empty((len(rows), len(tokens), shares.shape[1]), np.int64)
    length = int(min(CYCLE, tokens.max(initial=1)))
    rows = [_counts_of(row) for row in rows]
    for i, row in enumerate(rows):
        keys = logs[row] + rng.gumbel(size=(length, shares.shape[1]))
        taken = np.argpartition(-keys, top_k - 1, axis=1)[:, :top_k]
        passed = np.zeros((length + 1, shares.shape[1]), np.int64)
        np.put_along_axis(passed[1:], taken, 1, axis=1)
        passed = passed.cumsum(0)
        found[i] = tokens[:, None] // length * passed[-1] + passed[tokens % length]
    return found


def realised(rows: int, drawn: int, layers: int, times: int, seed: int) -> Array:
    """Which drawn layers stand for a model's: indices ``[times, layers]``."""
    rng = np.random.default_rng([seed, 43])
    each = drawn // rows
    first = np.arange(layers) * each if rows == layers else np.zeros(layers, np.int64)
    return first + rng.integers(0, each if rows == layers else drawn, (times, layers))
