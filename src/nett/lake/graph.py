"""The containment graph as a picture: equal groups are one node, children stand left of their parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, final

from nett.core.report.svg import WIDTH, frame, label, num, tag, title
from nett.core.report.words import clean, number, size

MOST = 150  # nodes that are drawn, the largest first
_TALL, _GAP, _COLUMNS = 38.0, 8.0, 5


@final
@dataclass(eq=False)
class Node:
    """Tables that contain each other. ``parents`` are the nearest only."""

    names: list[str]
    bytes: int
    parents: list[Node] = field(default_factory=list)
    layer: int = 0  # 0 is no child of any
    at: tuple[float, float] = (0.0, 0.0)

    @property
    def words(self) -> str:
        more = f" = {len(self.names) - 1:,} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more}, {size(self.bytes)}"


def nodes_of(tables: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The nodes that have an edge or hold several tables, the largest first."""
    held = {t["name"]: int(t["bytes"]) for t in tables}
    parents: dict[str, set[str]] = {}
    for edge in edges:
        if edge["containment"] == 1:
            parents.setdefault(edge["child"], set()).add(edge["parent"])
    of: dict[str, Node] = {}
    for name in sorted(held):
        same = {p for p in parents.get(name, ()) if name in parents.get(p, ())}
        node = next((of[p] for p in sorted(same) if p in of), None)
        if node is None:
            node = Node([], 0)
        of[name] = node
        node.names.append(name)
        node.bytes += held[name]
    above: dict[Node, set[Node]] = {}
    for child, some in parents.items():
        above.setdefault(of[child], set()).update(of[p] for p in some if of[p] is not of[child])
    for node, some_nodes in above.items():
        nearest = some_nodes - {
            far for near in some_nodes for far in above.get(near, ()) if node not in above.get(far, ())
        }
        node.parents = sorted(nearest, key=lambda n: (-n.bytes, n.names))
    with_edges = set(above) | {p for some_nodes in above.values() for p in some_nodes}
    found = {n for n in of.values() if n in with_edges or len(n.names) > 1}
    return sorted(found, key=lambda n: (-n.bytes, n.names))


def draw(nodes: Sequence[Node]) -> str:
    """Nodes of one picture; edges to others are left out."""
    shown = set(nodes)
    for node in nodes:
        node.layer = 0
    for _ in range(_COLUMNS):  # longest paths, as far as there are columns
        for node in nodes:
            for parent in node.parents:
                if parent in shown:
                    node.layer = min(_COLUMNS - 1, max(node.layer, parent.layer + 1))
    columns = 1 + max((n.layer for n in nodes), default=0)
    wide = (WIDTH - 2 * _GAP) / columns
    top = _GAP
    for component in _components(nodes, shown):
        top = _place(component, shown, columns, wide, top) + _GAP * 2
    room = wide - (40.0 if columns > 1 else 0.0)
    drawn = [_arrow(n, p, room) for n in nodes for p in n.parents if p in shown]
    drawn += [_box(n, room) for n in nodes]
    told = "; ".join(f"{n.words} is in {', '.join(p.names[0] for p in n.parents)}" for n in nodes if n.parents)
    return frame(top, "Which tables are contained in which", told, *drawn)


def _components(nodes: Sequence[Node], shown: set[Node]) -> list[list[Node]]:
    """Nodes that hang together, the largest component first."""
    beside: dict[Node, list[Node]] = {n: [] for n in nodes}
    for node in nodes:
        for parent in node.parents:
            if parent in shown:
                beside[node].append(parent)
                beside[parent].append(node)
    found, seen = [], set[Node]()
    for node in nodes:
        if node in seen:
            continue
        waiting, together = [node], []
        seen.add(node)
        while waiting:
            one = waiting.pop()
            together.append(one)
            new = [n for n in beside[one] if n not in seen]
            seen.update(new)
            waiting += new
        found.append(sorted(together, key=lambda n: (n.layer, -n.bytes, n.names)))
    return sorted(found, key=lambda some: (-sum(n.bytes for n in some), some[0].names))


def _place(nodes: Sequence[Node], shown: set[Node], columns: int, wide: float, top: float) -> float:
    """Put a component's nodes; each near the middle of its parents. Gives where it ends."""
    bottom = top
    for layer in sorted({n.layer for n in nodes}):
        some = [n for n in nodes if n.layer == layer]

        def middle(node: Node) -> float:
            above = [p.at[1] for p in node.parents if p in shown and p.layer < node.layer]
            return sum(above) / len(above) if above else top

        y = top
        for node in sorted(some, key=lambda n: (middle(n), -n.bytes, n.names)):
            node.at = (_GAP + (columns - 1 - layer) * wide, y)
            y += _TALL + _GAP
        bottom = max(bottom, y)
    return bottom


def _box(node: Node, room: float) -> str:
    x, y = node.at
    names = "\n".join(node.names[:20]) + (f"\n… and {len(node.names) - 20:,} more" if len(node.names) > 20 else "")
    box = tag(
        "rect",
        {
            "x": x,
            "y": y,
            "width": room,
            "height": _TALL,
            "rx": "4",
            "class": "k0" if node.parents else "k1",
            "fill": "none",
        },
    )
    amount = (
        size(node.bytes)
        if len(node.names) == 1
        else f"{number(len(node.names))} × {size(node.bytes / len(node.names))}"
    )
    return tag(
        "g", {}, tag("title", {}, escape(clean(f"{node.words}\n{names}"))), box,
        label(x + 8, y + 16, node.names[0], room=room - 16),
        label(x + 8, y + 31, amount, style="dim", room=room - 16),
    )  # fmt: skip


def _arrow(child: Node, parent: Node, room: float) -> str:
    x, y = child.at[0] + room, child.at[1] + _TALL / 2
    u, v = parent.at[0], parent.at[1] + _TALL / 2
    if u <= x:  # more layers than columns
        u, x = parent.at[0], child.at[0]
    half = (u - x) / 2
    path = f"M{num(x)} {num(y)}C{num(x + half)} {num(y)} {num(u - half)} {num(v)} {num(u - 6)} {num(v)}"
    head = f"M{num(u - 7)} {num(v - 4)}L{num(u)} {num(v)}L{num(u - 7)} {num(v + 4)}z"
    told = title(f"{child.names[0]} is in {parent.names[0]}")
    return tag("path", {"d": path, "class": "k2", "fill": "none"}, told) + tag("path", {"d": head, "class": "f2"})
