"""Schema containment: the inverted index against the paper's clusters (P03, schema graph builder), and against all pairs."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import example, given
from hypothesis import strategies as st

from nett.lake.schema_graph import contained_schemas

Schemas = Mapping[int, frozenset[str]]
SCHEMAS = st.dictionaries(st.integers(0, 40), st.frozensets(st.sampled_from("abcdefg")), max_size=14)


def clusters(schemas: Schemas) -> list[list[int]]:
    """From the widest schema on: each joins every cluster whose centre holds it, else it is a new centre."""
    found: list[tuple[frozenset[str], list[int]]] = []
    for table in sorted(schemas, key=lambda t: -len(schemas[t])):
        homes = [members for centre, members in found if schemas[table] <= centre]
        for members in homes:
            members.append(table)
        if not homes:
            found.append((schemas[table], [table]))
    return [members for _, members in found]


def by_clusters(schemas: Schemas) -> set[tuple[int, int]]:
    pairs = {(a, b) for members in clusters(schemas) for a in members for b in members if a != b}
    return {(a, b) for a, b in pairs if schemas[a] and schemas[a] <= schemas[b]}


@given(SCHEMAS)
@example(
    {0: frozenset("ab"), 1: frozenset("ab"), 2: frozenset("abc"), 3: frozenset("bd"), 4: frozenset("b"), 5: frozenset()}
)
def test_the_index_finds_what_the_clusters_find(schemas: Schemas) -> None:
    found = {(child, parent) for child, parents in contained_schemas(schemas).items() for parent in parents}
    everything = {(a, b) for a, x in schemas.items() for b, y in schemas.items() if a != b and x and x <= y}
    assert found == by_clusters(schemas) == everything
