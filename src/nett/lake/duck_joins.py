"""How many rows of several children a parent lacks, as queries of DuckDB's: one join for all of them.

``mine``: a query for each child, of its number ``i`` and its columns k0, k1, …; ``its``: the parent's in the same
columns. Children that lack nothing are not in what :func:`rows_missing` gives. The database holds a hash table of
whichever side is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence


def equal_rows(width: int) -> str:
    """Where a row c and a row p are equal, NULL as a value."""
    return " AND ".join(f"c.k{i} IS NOT DISTINCT FROM p.k{i}" for i in range(width))


def rows_missing(mine: Sequence[str], its: str, width: int) -> str:
    """(i, rows that the parent lacks, equal ones as often as they stand)."""
    return f"SELECT i, count(*) FROM {_below(mine)} c ANTI JOIN ({its}) p ON {equal_rows(width)} GROUP BY i"


def distinct_missing(mine: Sequence[str], its: str, width: int) -> str:
    """(i, distinct rows, those that the parent lacks)."""
    return (
        f"WITH c AS (SELECT DISTINCT * FROM {_below(mine)}),"
        f" l AS (SELECT i, count(*) AS n FROM c ANTI JOIN ({its}) p ON {equal_rows(width)} GROUP BY i)"
        " SELECT i, count(*), coalesce(any_value(l.n), 0) FROM c LEFT JOIN l USING (i) GROUP BY i"
    )


def copies_missing(mine: Sequence[str], its: str, width: int) -> str:
    """(i, rows, those beyond as many as the parent has of each)."""
    same = equal_rows(width)
    return (
        f"WITH c AS (SELECT *, count(*) AS n FROM {_below(mine)} GROUP BY ALL),"
        f" p AS (SELECT *, count(*) AS n FROM ({its}) c SEMI JOIN c AS d ON {same.replace('p.', 'd.')} GROUP BY ALL)"
        " SELECT c.i, coalesce(sum(c.n), 0), coalesce(sum(greatest(c.n - coalesce(p.n, 0), 0)), 0)"
        f" FROM c LEFT JOIN p ON {same} GROUP BY c.i"
    )


def lacking_rows(mine: str, its: str, same: str, most: int, *, once: bool) -> str:
    """(columns of the one child, how often the parent lacks the row); the first ``most`` in their order."""
    limit = f"ORDER BY ALL NULLS FIRST LIMIT {most}"
    if once:
        return f"SELECT DISTINCT c.*, 1 AS n FROM ({mine}) c ANTI JOIN ({its}) p ON {same} {limit}"
    return (
        f"SELECT c.* REPLACE (c.n - coalesce(p.n, 0) AS n) FROM (SELECT *, count(*) AS n FROM ({mine}) GROUP BY ALL) c"
        f" LEFT JOIN (SELECT *, count(*) AS n FROM ({its}) GROUP BY ALL) p ON {same}"
        f" WHERE c.n > coalesce(p.n, 0) {limit}"
    )


def _below(mine: Sequence[str]) -> str:
    return f"({' UNION ALL '.join(mine)})"
