"""The edge: asset B can be had from asset(s) A by method m, at so many bytes and seconds, with this error,
under this guarantee. Everything that reports, plans or proves speaks in edges.

The record is frozen: its JSON schema is :data:`SCHEMA`, published as ``docs/edge.schema.json``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from nett.core.jsonable import jsonable

Guarantee = Literal["exact", "bounded", "measured"]

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "nett edge",
    "description": "An asset that can be had from other assets.",
    "type": "object",
    "additionalProperties": False,
    "required": [
        "kind",
        "target",
        "sources",
        "method",
        "bytes_freed",
        "seconds",
        "error",
        "guarantee",
        "command",
    ],
    "properties": {
        "kind": {"type": "string", "description": "what was found, such as duplicate_tensor"},
        "target": {"type": "string", "description": "the asset that need not be kept: path, or path::tensor"},
        "sources": {"type": "array", "items": {"type": "string"}, "description": "what it is rebuilt from"},
        "method": {"type": ["string", "null"], "description": "ROOM/METHOD that rebuilds or removes it"},
        "bytes_freed": {"type": "integer", "minimum": 0},
        "seconds": {"type": ["number", "null"], "minimum": 0, "description": "to rebuild the target"},
        "error": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "relative L2 distance, 0 when exact",
        },
        "guarantee": {"enum": ["exact", "bounded", "measured"]},
        "command": {
            "type": ["string", "null"],
            "description": "what takes the edge; null where nothing does yet",
        },
    },
}


@final
@dataclass(frozen=True)
class Edge:
    """One finding, one choice of the planner, one line of a receipt. Field names are the JSON keys."""

    kind: str
    target: str
    sources: tuple[str, ...]
    method: str | None
    bytes_freed: int
    seconds: float | None
    error: float | None
    guarantee: Guarantee
    command: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary that :data:`SCHEMA` accepts."""
        record = asdict(self)
        record["sources"] = list(self.sources)
        found: dict[str, Any] = jsonable(record)
        return found


def ranked(edges: Iterable[Edge]) -> list[Edge]:
    """Largest gain first; at equal gain the stronger guarantee, then the name, so that the order is stable."""
    strength = {"exact": 0, "bounded": 1, "measured": 2}
    return sorted(edges, key=lambda e: (-e.bytes_freed, strength[e.guarantee], e.kind, e.target))
