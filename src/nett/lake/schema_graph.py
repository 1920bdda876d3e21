"""Schema containment: which tables' columns are all among another's (R2D2, P03, stage 1: schema graph builder).

By an inverted index from columns to tables. The paper's clusters around widest schemas give the same pairs
(tests/lake/test_schema_graph.py has both) and compare every pair of a cluster.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=Hashable)
Schema = frozenset[str]


def contained_schemas(schemas: Mapping[T, Schema]) -> dict[T, list[T]]:
    """Child -> parents whose schema holds the child's, itself left out; equal schemas hold each other.

    By an inverted index over distinct schemas: the posting lists of a schema's columns are intersected, the shortest
    first. Cost: for each distinct schema, its shortest posting list. A schema without columns has no parents.
    """
    groups: dict[Schema, list[T]] = {}
    for table, schema in schemas.items():
        groups.setdefault(schema, []).append(table)
    postings: dict[str, set[int]] = {}
    distinct = list(groups)
    for number, schema in enumerate(distinct):
        for column in schema:
            postings.setdefault(column, set()).add(number)
    parents: dict[T, list[T]] = {}
    for schema in distinct:
        if not schema:
            continue
        lists = sorted((postings[c] for c in schema), key=len)
        holders = set.intersection(lists[0], *lists[1:])
        wider = [t for number in sorted(holders) for t in groups[distinct[number]]]
        for child in groups[schema]:
            parents[child] = [p for p in wider if p != child]
    return parents
