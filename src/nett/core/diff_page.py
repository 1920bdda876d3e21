"""A comparison of two checkpoints as a page with pictures."""

from __future__ import annotations

from collections import Counter

from nett.core.diff import Diff, LayerDiff, TensorDiff
from nett.core.layers import layer_of
from nett.core.report import Code, Page, add_edges
from nett.core.report.words import size

HEADERS = ("tensor", "status", "change", "largest", "changed", "rank", "sign flips", "bytes")
LAYER_HEADERS = ("layer", "tensors", "change", "largest", "changed", "sign flips", "bytes")
LEGEND = (
    "change: ||b - a|| / ||a||; largest: of |b - a|; changed: share of the elements; rank: of the smallest two factors "
    "that hold 99 % of the change's squared norm (matrices only)."
)


def row_of(tensor: TensorDiff, energy: float = 0.99) -> list[object]:
    """The figures of one tensor, under :data:`HEADERS`. The rank holds ``energy`` of the change's squared norm."""
    moved, info = tensor.moved, tensor.b or tensor.a
    low = tensor.rank.rank_for(energy) if tensor.rank else None
    figures = [moved.relative, moved.largest, moved.density] if moved else [None] * 3
    flips = moved.flips if moved else None
    return [tensor.name, tensor.status, *figures, low[0] if low else None, flips, info.nbytes if info else None]


def layer_row_of(layer: LayerDiff) -> list[object]:
    """The figures of one layer, under :data:`LAYER_HEADERS`."""
    moved = layer.moved
    return [layer.name, layer.tensors, moved.relative, moved.largest, moved.density, moved.flips, layer.nbytes]


def summary(diff: Diff) -> str:
    """The sentence that says what came out."""
    if diff.identical:
        return f"{diff.a} and {diff.b} hold the same tensors, bit for bit ({size(diff.bytes_a)})."
    counts: Counter[str] = Counter(t.status for t in diff.tensors)
    words = {"moved": "moved", "retyped": "only of another type", "reshaped": "of another shape",
             "only_a": f"only in {diff.a}", "only_b": f"only in {diff.b}", "same": "the same"}  # fmt: skip
    said = f"Of {len(diff.tensors):,} tensors " + ", ".join(f"{counts[k]:,} {w}" for k, w in words.items() if counts[k])
    return f"{said}. Relative change of all that can be compared: {diff.total.relative:.4g}."


def diff_page(diff: Diff) -> Page:
    """One page of a whole comparison."""
    page = Page("nett diff", f"from {diff.a} to {diff.b}")
    page.verdict(summary(diff), "good" if diff.identical else "plain")
    page.contents()
    page.heading("Bytes")
    page.bars([(diff.a, diff.bytes_a), (diff.b, diff.bytes_b)], title="Bytes of the tensors", unit="bytes")
    if diff.layers:
        page.heading("Layers")
        page.bars([(x.name, x.moved.relative) for x in diff.layers], title="Relative change of each layer",
                  note="||b − a|| / ||a||")  # fmt: skip
        _heat(page, diff)
        page.table(LAYER_HEADERS, [[Code(x.name), *layer_row_of(x)[1:]] for x in diff.layers])
    page.heading("Tensors")
    page.table(HEADERS, [[Code(t.name), *row_of(t)[1:]] for t in diff.tensors])
    page.text(LEGEND, dim=True)
    page.heading("What it takes to have one from the other")
    if diff.edges:
        add_edges(page, [e.as_json() for e in diff.edges])
    else:
        page.text(f"No delta from {diff.a} is smaller than {diff.b} itself.")
    return page


def _heat(page: Page, diff: Diff) -> None:
    """Relative change by layer and role, where there are layers to compare."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    layers: set[tuple[str, int]] = set()
    for tensor in diff.tensors:
        name = layer_of(tensor.name)
        if name is not None and tensor.moved is not None:
            layers.add((name.stack, name.number))
            found.setdefault(name.role, {})[name.stack, name.number] = tensor.moved.relative
    if len(layers) < 2:
        return
    columns = sorted(layers)
    stacks = {stack for stack, _ in columns}
    names = [str(number) if len(stacks) == 1 else f"{stack}.{number}" for stack, number in columns]
    rows = sorted(found)
    values = [[found[role].get(column) for column in columns] for role in rows]
    page.heat(rows, names, values, title="Relative change of each tensor", note="layers from left to right")
