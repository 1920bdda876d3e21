"""Tables with other rows: each its own, the mean of donors' rows, zeros, or the mean of the table so far."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.core.checkpoint import rows as module
from nett.core.checkpoint.arrays import ArrayCheckpoint
from nett.core.checkpoint.rows import RowMap, RowsCheckpoint
from support.tensors import Array


def expected(tables: list[Array], own: Array, given_rows: Array, mean_from: int) -> Array:
    """Row by row, from the definition."""
    made = np.zeros((own.size, *tables[0].shape[1:]), np.float64)
    for row in range(mean_from):
        theirs = [t[r] for t, r in zip(tables, given_rows[:, row], strict=True) if r >= 0]
        if own[row] >= 0:
            made[row] = tables[0][own[row]]
        elif theirs:
            made[row] = sum(x.astype(np.float64) for x in theirs) / len(theirs)
    made[mean_from:] = made[:mean_from].mean(0)
    return made


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans(), st.integers(0, 5))
def test_same_as_row_by_row(seed: int, donors: int, keep: bool, padding: int) -> None:
    rng = np.random.default_rng(seed)
    width, rows = int(rng.integers(1, 5)), int(rng.integers(1, 90))
    tables = [rng.standard_normal((int(rng.integers(1, 90)), width)).astype(np.float32) for _ in range(donors)]
    own = np.where(rng.random(rows + padding) < 0.6, rng.integers(0, len(tables[0]), rows + padding), -1)
    theirs = np.stack([np.where(rng.random(own.size) < 0.4, rng.integers(0, len(t), own.size), -1) for t in tables])
    own[rows:] = -1
    sources = tuple(ArrayCheckpoint({"other": t}) for t in tables[1:])
    first = ArrayCheckpoint({"table": tables[0], "norm": np.arange(3, dtype=np.float32)})
    made = RowsCheckpoint(
        first, RowMap(own, theirs, (first, *sources), rows), {"table": ["table", *["other"] * len(sources)]}
    )
    wanted = expected(tables, own, theirs, rows)
    assert made.tensors["table"].shape == wanted.shape and made.tensors["table"].nbytes == wanted.size * 4
    before, module.FEW = module.FEW, 0 if keep else 10**6
    try:
        found = made.values("table")
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-6, atol=1e-7)
        exact = own >= 0
        assert np.array_equal(found.reshape(wanted.shape)[exact], tables[0][own[exact]])
        start, stop = sorted(rng.integers(0, wanted.size + 1, 2).tolist())
        assert np.array_equal(made.values("table", start, stop), found[start:stop])
        assert np.array_equal(made.read("table", start, stop), found[start:stop])
    finally:
        module.FEW = before
    assert np.array_equal(made.values("norm"), np.arange(3))


def test_negative_zeros_and_types_survive() -> None:
    table = np.array([[-0.0], [2.0], [3.0]], np.float32)
    wide = ArrayCheckpoint({"t": np.array([[0.1]], np.float64)})
    first = ArrayCheckpoint({"t": table})
    rows = RowMap(np.array([2, -1, -1]), np.array([[-1, 0, -1], [-1, -1, 0]]), (first, wide), 3)
    found = RowsCheckpoint(first, rows, {"t": ["t", "t"]}).values("t")
    assert found.dtype == np.float64 and found.tolist() == [3.0, -0.0, 0.1] and np.signbit(found[1])


def test_tables_without_columns_and_without_rows() -> None:
    bias = ArrayCheckpoint({"bias": np.arange(4, dtype=np.float32)})
    rows = RowMap(np.array([3, -1, 0]), np.array([[-1, 2, -1]]), (bias,), 3)
    assert RowsCheckpoint(bias, rows, {"bias": ["bias"]}).values("bias").tolist() == [3, 2, 0]
    empty = RowMap(np.array([], int), np.empty((1, 0), int), (bias,), 0)
    assert RowsCheckpoint(bias, empty, {"bias": ["bias"]}).values("bias").size == 0


def test_tables_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD", 400)
    kept = module.Tables()
    first, second = (ArrayCheckpoint({"a": np.ones(60, np.float32), "b": np.ones(60, np.float32)}) for _ in "12")
    assert kept.of(first, "a", {"a"}) is not None
    assert kept.of(second, "a", {"a"}) is None  # no room beside the one in use
    assert kept.of(second, "b", {"b"}) is not None  # the one of another tensor is let go
    assert kept.of(first, "b", {"b"}) is None
