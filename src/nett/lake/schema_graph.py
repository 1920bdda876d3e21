"""Schema containment: which tables' columns are all among another's (R2D2, P03, stage 1: schema graph builder).

Two ways to the same pairs: the paper's clusters, and an inverted index from columns to tables, which needs no centres.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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


def clusters(schemas: Sequence[Schema]) -> list[tuple[Schema, list[int]]]:
    """The paper's clusters: (centre, numbers of the schemas in it), largest schema first.

    A schema joins every cluster whose centre holds it, else it is a new centre. So a schema and any that holds it share
    a cluster: the centre that holds the wider one.
    """
    found: list[tuple[Schema, list[int]]] = []
    for number in sorted(range(len(schemas)), key=lambda i: -len(schemas[i])):
        joined = False
        for centre, members in found:
            if schemas[number] <= centre:
                members.append(number)
                joined = True
        if not joined:
            found.append((schemas[number], [number]))
    return found
