"""What all layers have become, as a config and as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from nett.core.checkpoint.split import marked
from nett.core.errors import Refused
from nett.experts.chosen import counted
from nett.experts.layouts import FileLayer
from nett.experts.opening import Opened
from nett.experts.view import width_key


@final
@dataclass
class Done:
    """What was made, an entry a layer: experts that are stored, rows that the router keeps, the table of a map, width of
    an expert, the part that holds it (None where the file's own tensors stay), the receipt's line."""

    counts: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    tables: list[list[int] | None] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    parts: list[Path | None] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    split: bool = False  # whether matrices lie in parts


def config_of(model: Opened, done: Done) -> tuple[dict[str, Any], list[str]]:
    """The result's config, and what the reader must know of who loads it; Refused where no config can say it."""
    config = model.skeleton.checkpoint.config()
    assert config is not None  # the skeleton was built of it
    made, notes = counted(config, done.counts, done.tables), []
    if any(table is not None for table in done.tables):
        notes.append("the router keeps a row for each of the old experts; it loads with nett.load(DIR, as_model=True)")
    elif len(set(done.counts)) > 1:
        notes.append(
            f"layers keep {min(done.counts)} to {max(done.counts)} experts, which no config of transformers can say; it loads "
            "with nett.load(DIR, as_model=True)"
        )
    widths = set(done.widths)
    if widths != {layer.width for layer in model.layers}:
        inner = made.get("text_config")
        text = inner if isinstance(inner, dict) else made
        key = width_key(text)
        shared = [n for layer in model.layers for n in layer.place.shared]
        if len(widths) > 1 or key is None or (shared and text.get("n_shared_experts")):
            why = f"they differ: {sorted(widths)}" if len(widths) > 1 else f"{key} says the shared experts' too"
            raise Refused(f"the experts' width cannot be said in its config: {why}")
        text[key] = widths.pop()
    if done.split:
        made = marked(made)
        notes.append("matrices lie in parts, low rank and rows; it loads with nett.load(DIR, as_model=True)")
    return made, notes


def unseen(layers: Sequence[FileLayer], known: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader must know of experts that no token of the text chose."""
    found = [(layer.name, int((one["counts"] == 0).sum())) for layer, one in zip(layers, known, strict=True) if one]
    total = sum(n for _, n in found)
    if not total:
        return []
    where = ", ".join(f"{n} in {name}" for name, n in found[:4] if n)
    return [f"{total} experts were chosen by no token of the text ({where}{' …' if len(found) > 4 else ''})"]


def found_of(layers: Sequence[FileLayer], done: Done) -> dict[str, Any]:
    """The receipt's figures."""
    return {
        "layers": len(layers),
        "experts_before": sum(layer.count for layer in layers),
        "experts_after": sum(done.counts),
        "experts_by_layer": list(done.counts),
        "width": max(done.widths),
    }
