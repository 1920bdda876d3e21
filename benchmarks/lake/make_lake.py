"""A lake of Parquet tables whose containments are known by the way it is made.

Families: a real table of R's, its rows repeated with numbers that differ from one repetition to the next, then children
of it by a cycle of ways (``WAYS``). Those of ``TRUE`` are contained in the base; noise takes a child out of it at a known
containment. Truth inside a family that the making does not tell (child in child) is left to brute force.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lake import brute

Say = Callable[[str], None]
NOISE = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
TRUE = ("filter", "projection", "shuffle", "types", "repeated", "both")
WAYS = (*TRUE, *(f"noise {c}" for c in NOISE), "strangers", "filter", "projection", "both", "shuffle", "noise 0.999")
GROUPS = 1 << 16  # rows a row group
CHILDREN = 11.0  # bytes of a family over those of its base, about


def make_lake(folder: Path, csvs: Path, tables: int, megabytes: float, say: Say) -> dict[str, Any]:
    """{"edges": [[child, parent]] by construction, "not": those that noise broke}; kept for the next run."""
    done = folder.with_suffix(".json")
    wanted = [tables, megabytes]
    if done.exists() and (known := json.loads(done.read_text()))["wanted"] == wanted:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames = _frames(csvs)
    chance = np.random.default_rng(0)
    each = 1 + len(WAYS)
    families = -(-tables // each)
    chosen = [frames[i] for i in chance.permutation(len(frames))[:families]]
    edges: list[tuple[str, str]] = []
    broken: list[tuple[str, str]] = []
    for number in range(families):
        made = _family(folder, number, chosen[number % len(chosen)], megabytes * 1e6 / families / CHILDREN, chance)
        edges += made[0]
        broken += made[1]
        if number % 10 == 9:
            say(f"{number + 1} of {families} families")
    told = {"wanted": wanted, "edges": edges, "not": broken}
    done.write_text(json.dumps(told))
    return told


@functools.cache
def _frames(csvs: Path) -> list[brute.Frame]:
    return [f for f in brute.frames(csvs, without="column0") if f.rows >= 100 and 4 <= len(f.columns) <= 30]


def _family(
    folder: Path, number: int, frame: brute.Frame, size: float, chance: np.random.Generator
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """A base of about ``size`` bytes of Parquet and its children: pairs that hold, pairs that noise broke."""
    import pyarrow as pa

    base = _scaled(frame, max(2000, int(size / _bytes_a_row(frame))), chance)
    rows, names = base.num_rows, base.column_names
    stem = f"f{number:03}"
    held: list[tuple[str, str]] = []
    broken: list[tuple[str, str]] = []
    _write(base, folder / f"{stem}-base.parquet")
    for place, way in enumerate(WAYS):
        some = np.sort(chance.choice(rows, int(rows * chance.uniform(0.2, 0.7)), replace=False))
        columns = [n for i, n in enumerate(names) if i == 0 or chance.random() < 0.7]
        child = base
        if way in ("filter", "both") or way.startswith("noise"):
            child = child.take(pa.array(some))
        if way in ("projection", "both"):
            child = child.select(columns)
        if way == "shuffle":
            child = child.take(pa.array(chance.permutation(rows)))
        if way == "repeated":
            child = child.take(pa.array(chance.choice(rows, rows)))
        if way == "types":
            whole = [pa.types.is_integer(f.type) for f in child.schema]
            child = child.cast(pa.schema([(n, pa.float64() if w else t)
                                          for n, t, w in zip(names, child.schema.types, whole, strict=True)]))  # fmt: skip
        if way == "strangers":
            child = _scaled(frame, rows // 2, chance)
        if way.startswith("noise"):
            child = _noisy(child, 1 - float(way.split()[1]), chance)
        name = f"{stem}-{place:02}-{way.replace(' ', '-')}.parquet"
        _write(child, folder / name)
        into = broken if way.startswith("noise") or way == "strangers" else held
        into.append((name, f"{stem}-base.parquet"))
        if way == "shuffle":
            held.append((f"{stem}-base.parquet", name))
    return held, broken


def _bytes_a_row(frame: brute.Frame) -> float:
    """As they are written, of some rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(_scaled(frame, GROUPS, np.random.default_rng(1)), out, row_group_size=GROUPS, compression="zstd")
    return float(out.getvalue().size) / GROUPS


def _scaled(frame: brute.Frame, rows: int, chance: np.random.Generator) -> Any:
    """The table's rows drawn ``rows`` times, a running number first; floats jittered within their own range."""
    import pyarrow as pa

    picked = chance.integers(0, frame.rows, rows)
    columns = {"row_id": pa.array(np.arange(rows) * 2 + int(chance.integers(0, 2)))}
    for name, values in frame.columns.items():
        kind = frame.kinds[name]
        if kind == "text":
            columns[name] = pa.array(values, pa.string()).take(pa.array(picked))
            continue
        own = np.array([np.nan if v is None else float(v) for v in values])
        drawn = own[picked]
        nulls = np.isnan(drawn)
        if kind == "integer" and np.nanmax(np.abs(own)) < 2**53:
            columns[name] = pa.array(np.where(nulls, 0, drawn).astype(np.int64), mask=nulls)
        else:
            low, high = np.nanmin(own), np.nanmax(own)
            moved = np.clip(drawn + chance.normal(0, 0.01 * (high - low + 1e-9), rows), low, high)
            columns[name] = pa.array(np.round(moved, 4), mask=nulls)
    return pa.table(columns)


def _noisy(table: Any, share: float, chance: np.random.Generator) -> Any:
    """A share of the rows, one at least, get a number that no row of the base has, inside the range of the others."""
    import pyarrow as pa

    ids = table.column("row_id").to_numpy().copy()
    inner = np.arange(1, len(ids) - 1)  # so that minima and maxima stay
    hit = chance.choice(inner, max(1, round(share * len(ids))), replace=False)
    ids[hit] ^= 1
    return table.set_column(0, "row_id", pa.array(ids))


def _write(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=GROUPS, compression="zstd")
