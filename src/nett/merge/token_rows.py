"""Which row of which model each row of the output's vocabulary is: decided from token texts alone, for whole arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array


@final
@dataclass(frozen=True)
class Known:
    """What one model knows: its tokens' ids, as far as it has rows for them, and how many rows it has."""

    vocab: Mapping[str, int]
    rows: int

    def row(self, token: str) -> int:
        """The token's row, -1 where there is none."""
        found: int = self.vocab.get(token, -1)
        return found if found < self.rows else -1


@final
@dataclass(frozen=True)
class TokenRows:
    """``own``: (models, rows) the row of each model's own table, -1 for none. ``given``: (models, rows) for models
    without: the mean of these rows, zeros where there are none. ``fills``: how many tokens are filled by which rule.
    ``tokens``: rows up to here stand for tokens, as far as an id does. ``mean_from``: rows from here on are the mean of
    those before."""

    own: Array
    given: Array
    fills: Mapping[str, int]
    tokens: int
    mean_from: int

    @property
    def rows(self) -> int:
        return int(self.own.shape[1])


def token_rows(
    vocab: Mapping[str, int],
    models: Sequence[Known],
    *,
    base: int | None,
    explicit: Mapping[str, tuple[int, int] | None],
    forced: Sequence[str],
    pad_to_multiple_of: int | None = None,
) -> TokenRows:
    """The rows of an output with the tokens ``vocab``.

    A model that has a token keeps its row for it. One that lacks it is given the row that ``explicit`` names (model,
    row; None for zeros), else the base's, else that of the only model that has it, else the mean of all that have it,
    else zeros. ``forced`` tokens are given to models that have them too.

    Rows without a token are kept: a model whose tokens have the ids here that they had there keeps its further rows,
    and the output has as many as the largest of these. With ``pad_to_multiple_of`` it has the tokens' rows and as many
    more as it takes, each the mean of the tokens' rows.
    """
    by_id: list[str | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, number in vocab.items():
        by_id[number] = token
    tokens = len(by_id)
    same = [all(vocab.get(t) == n for t, n in m.vocab.items() if n < m.rows) for m in models]
    if pad_to_multiple_of is None:
        rows = max([tokens, *(m.rows for m, keeps in zip(models, same, strict=True) if keeps)])
        mean_from = rows
    else:
        rows, mean_from = -(-tokens // pad_to_multiple_of) * pad_to_multiple_of, tokens
    own = np.full((len(models), rows), -1, np.int32)
    stands = np.zeros(rows, bool)
    stands[list(vocab.values())] = True
    for found, model, keeps in zip(own, models, same, strict=True):
        found[:tokens] = [-1 if t is None else model.vocab.get(t, -1) for t in by_id]
        if keeps:
            last = min(model.rows, mean_from)
            further = np.flatnonzero(~stands[:last])
            found[further] = further
        found[found >= model.rows] = -1
    has = own >= 0
    count = has.sum(0)
    given = np.where(has, own, -1)
    if base is not None:
        others = np.arange(len(models)) != base
        given[np.ix_(others, has[base])] = -1
    said = np.zeros(rows, bool)
    for token, source in explicit.items():
        number = vocab[token]
        given[:, number] = -1
        said[number] = True
        if source is not None:
            given[source[0], number] = source[1]
    pushed = np.zeros(rows, bool)
    pushed[[vocab[t] for t in forced]] = True
    own[:, pushed] = -1
    filled = stands & ((count < len(models)) | pushed)
    based = has[base] if base is not None else np.zeros(rows, bool)
    left = filled & ~said
    fills = {
        "tokens that all models have": stands & ~filled,
        "as the recipe says": filled & said,
        "the only model's": left & (count == 1),
        "the base's": left & (count > 1) & based,
        "mean of those that have it": left & (count > 1) & ~based,
        "zeros, since none has it": left & (count == 0),
    }
    return TokenRows(own, given, {k: int(v.sum()) for k, v in fills.items()}, tokens, mean_from)
