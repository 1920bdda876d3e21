"""A scan as a page with pictures: what is there, what could be freed, how near the checkpoints lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nett.core.edge import Edge
from nett.core.layers import layer_of
from nett.core.report import Code, Page, add_edges
from nett.scan import interference_page

if TYPE_CHECKING:
    from nett.scan.engine import Scan

_LARGEST = 15
_STRIPS = 4


def commands(scan: Scan) -> list[str]:
    """The commands of all findings, each once, in the order of the findings."""
    return list(dict.fromkeys(e.command for e in scan.edges if e.command))


def alike(edges: Sequence[Edge]) -> list[tuple[Edge, str, int]]:
    """Findings that differ only in the number of the layer, as one: (the first of them, their target with ``*`` for
    the number, how many they are); most bytes first."""
    groups: dict[tuple[object, ...], list[Edge]] = {}
    for edge in edges:
        key = (
            edge.kind,
            edge.method,
            edge.guarantee,
            edge.bytes_freed,
            edge.error,
            edge.command,
            _any_layer(edge.target),
        )
        groups.setdefault(key, []).append(edge)
    rows = [(g[0], _any_layer(g[0].target) if len(g) > 1 else g[0].target, len(g)) for g in groups.values()]
    return sorted(rows, key=lambda row: -row[0].bytes_freed * row[2])


def of_layers(count: int) -> str:
    """What is said beside a target that stands for several."""
    return f" ({count} layers)" if count > 1 else ""


def _any_layer(target: str) -> str:
    asset, mark, name = target.partition("::")
    found = layer_of(name)
    return ".".join(p for p in (f"{asset}::{found.stack}", "*", found.role) if p) if mark and found else target


def by_checkpoint(scan: Scan) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Probe -> (headers, rows) of the numbers that it gives for each checkpoint."""
    paths = [a["path"] for a in scan.assets]
    tables = {}
    for run in scan.probes:
        figures = run.findings.figures
        rows = {p: figures[p] for p in paths if isinstance(figures.get(p), Mapping)}
        names = list(dict.fromkeys(n for row in rows.values() for n, v in row.items() if isinstance(v, int | float)))
        if names:
            tables[run.name] = (["checkpoint", *names], [[p, *(row.get(n) for n in names)] for p, row in rows.items()])
    return tables


def scan_page(scan: Scan) -> Page:
    """One page of all that a scan says."""
    page = Page("nett scan", ", ".join(str(a["path"]) for a in scan.assets))
    page.verdict(summary(scan))
    page.contents()
    figures = {run.name: run.findings.figures for run in scan.probes}
    _assets(page, scan, figures.get("header", {}))
    _findings(page, scan)
    _closeness(page, figures.get("closeness", {}))
    interference_page.show(page, figures.get("interference", {}))
    _ranks(page, figures.get("effective_rank", {}))
    page.heading("What the scan took")
    page.table(
        ["probe", "seconds on all threads", "bytes shown to it"],
        [[run.name.replace("_", " "), round(run.seconds, 3), run.bytes_read] for run in scan.probes],
    )
    page.text("Probes share the reading: the bytes of all of them are more than were read.", dim=True)
    return page


def summary(scan: Scan) -> str:
    """The sentence that says what came out."""
    one = len(scan.assets) == 1
    said = f"{scan.nbytes:,} bytes in {len(scan.assets)} checkpoint{'' if one else 's'}; "
    said += f"{scan.lossless:,} can be freed without loss"
    if scan.most > scan.lossless:
        said += f", {scan.most:,} at a relative error of up to {scan.error:.3g}"
    return said


def _assets(page: Page, scan: Scan, headers: Mapping[str, Any]) -> None:
    page.heading("What is here")
    page.table(
        ["checkpoint", "format", "tensors", "layers", "parameters", "bytes", "largest tensor"],
        [
            [Code(a["path"]), a["format"], a["tensors"], about.get("layers"), a["parameters"], a["bytes"],
             about.get("largest")]
            for a in scan.assets
            for about in [headers.get(a["path"], {})]
        ],
    )  # fmt: skip
    types: Counter[str] = Counter()
    for about in headers.values():
        types.update(about["bytes_by_type"])
    if types:
        page.bars(types.most_common(), title="Bytes by element type", unit="bytes", note="as they are stored")


def _findings(page: Page, scan: Scan) -> None:
    page.heading("What could be freed")
    if not scan.edges:
        page.text("Nothing redundant was found.")
        return
    kinds: Counter[str] = Counter()
    for edge in scan.edges:
        kinds[edge.kind] += edge.bytes_freed
    counts = Counter(edge.kind for edge in scan.edges)
    page.bars(
        [
            (kind.replace("_", " "), nbytes, f"{counts[kind]:,} finding{'' if counts[kind] == 1 else 's'}")
            for kind, nbytes in kinds.most_common()
        ],
        title="Bytes by kind of finding",
        unit="bytes",
        note="kinds overlap: their sum is more than can be freed together",
    )
    groups = [
        (edge, (target.partition("::")[2] or target if len(scan.assets) == 1 else target) + of_layers(count), count)
        for edge, target, count in alike(scan.edges)
    ]
    page.bars(
        [
            (target, e.bytes_freed * count, f"{e.kind.replace('_', ' ')}, {_loss(e.error)}")
            for e, target, count in groups[:_LARGEST]
        ],
        title="Largest findings",
        unit="bytes",
    )
    add_edges(
        page,
        [
            e.as_json() | {"command": None, "target": target, "bytes_freed": e.bytes_freed * count}
            | ({"sources": []} if count > 1 else {})
            for e, target, count in groups
        ],
    )  # fmt: skip
    if known := commands(scan):
        page.text("What takes them:")
        page.code("\n".join(known))


def _loss(error: float | None) -> str:
    return "error not known" if error is None else "no loss" if error == 0 else f"error {error:.3g}"


def _closeness(page: Page, figures: Mapping[str, Any]) -> None:
    tuned = {path: about for path, about in figures.items() if isinstance(about, Mapping)}
    if not tuned:
        return
    page.heading("How near the checkpoints lie")
    said = f"Measured from {figures['base']}."
    if "sign_conflict" in figures:
        said += f" Of the elements that two or more of them moved, {100 * figures['sign_conflict']:.1f} % were moved in"
        said += " opposite directions: what merging suffers from."
    page.text(said)
    page.bars(
        [(path, about["delta_density"], "") for path, about in tuned.items()],
        title="Share of the elements that changed",
    )
    page.bars(
        [(path, about["norm_ratio"], "") for path, about in tuned.items()],
        title="Length of the change",
        note="relative to the base",
    )
    keys = list(dict.fromkeys(k for about in tuned.values() for k in about))
    page.table(["", *tuned], [[k.replace("_", " "), *(about.get(k) for about in tuned.values())] for k in keys])


def _ranks(page: Page, figures: Mapping[str, Any]) -> None:
    shares: dict[str, dict[str, float]] = {}
    for label, about in figures.get("by_matrix", {}).items():
        if about.get("full_rank"):
            path, _, name = label.partition("::")
            shares.setdefault(path, {})[name] = about["effective_rank"] / about["full_rank"]
    if not shares:
        return
    page.heading("Effective rank")
    page.text("Share of its full rank that each matrix uses; 1 is all of it.")
    for path, found in list(shares.items())[:_STRIPS]:
        page.figure_strip(found, title=path)
    if len(shares) > _STRIPS:
        page.text(f"… and {len(shares) - _STRIPS:,} more checkpoints.", dim=True)
    sampled = sum(bool(about.get("sampled")) for about in figures["by_matrix"].values())
    if sampled:
        page.text(f"{sampled:,} of {len(figures['by_matrix']):,} matrices were judged by a sample.", dim=True)
