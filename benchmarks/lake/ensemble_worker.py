"""Containment by datasketch's MinHashLSHEnsemble, in the peer's environment; prints one line of JSON. Needs nothing of
nett.

An index is of sets, and a row of a child is a row of its parent in the child's columns only. So each distinct schema has
an index: of every table that has its columns, hashed in them. Tables that share no schema with any other are not read.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSHEnsemble


def header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [name or f"column{i}" for i, name in enumerate(next(csv.reader(file)))]


def main(lake: Path, ignore: str, num_perm: int, num_part: int, threshold: float, compare: str) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    names = {str(f.relative_to(lake)): header(f) for f in sorted(lake.rglob("*.csv"))}
    schemas = {t: frozenset(n) - {ignore} for t, n in names.items()}
    of_schema: dict[frozenset[str], list[str]] = {}
    for table, schema in schemas.items():
        of_schema.setdefault(schema, []).append(table)
    frames: dict[str, Any] = {}

    def rows(table: str, schema: list[str]) -> Any:
        """Hashes of the distinct rows in these columns. By value, numbers are read as floats where a column has only
        such, so that 1 and 1.0 are equal; by text, all is read as it stands."""
        if table not in frames:
            type = str if compare == "text" else None
            frame = pd.read_csv(
                lake / table, names=names[table], header=0, keep_default_na=False, na_values=[""], dtype=type
            )
            numbers = [c for c in frame.columns if frame[c].dtype.kind in "iub"]
            frames[table] = frame.astype(dict.fromkeys(numbers, float))
        return np.unique(pd.util.hash_pandas_object(frames[table][schema], index=False).to_numpy())

    base = MinHash(num_perm=num_perm, hashfunc=int)
    pairs = []
    for schema, children in of_schema.items():
        holders = [t for t, s in schemas.items() if schema <= s]
        if len(holders) < 2 or not schema:
            continue
        columns = sorted(schema)
        sets = {}
        for table in holders:
            hashed = rows(table, columns)
            sketch = base.copy()
            if hashed.size:
                sketch.update_batch((hashed & 0xFFFFFFFF).tolist())
            sets[table] = (sketch, hashed.size)
        index = MinHashLSHEnsemble(threshold=threshold, num_perm=num_perm, num_part=min(num_part, len(sets)))
        index.index((t, sketch, max(1, size)) for t, (sketch, size) in sets.items())
        for child in children:
            sketch, size = sets[child]
            pairs += [(child, parent) for parent in index.query(sketch, max(1, size)) if parent != child]
    return {"pairs": pairs, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    place, without, perm, part, least, how = sys.argv[1:]
    print(json.dumps(main(Path(place), without, int(perm), int(part), float(least), how)))
