"""A receipt (``nett.json``) as a page: what was done, what it saved, what it cost, and how to check it or undo it.

Every section stands only where its key does, so that a receipt of any room, older or newer, gives a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.layers import natural
from nett.core.report import charts, provenance
from nett.core.report.page import Page
from nett.core.report.records import list_of, record_table, records, text_of
from nett.core.report.words import finite, size

_MOST_INPUTS = 20
_PASSED, _FAILED = "✓ passed", "✗ failed"


def receipt_page(receipt: Mapping[str, Any], folder: str = ".") -> Page:
    """The page of ``receipt``; ``folder`` is what the reader types to name the output (the page lies in it)."""
    page = Page(_title(receipt), _subtitle(receipt))
    text, style = _verdict(receipt)
    page.verdict(text, style)
    for note in list_of(receipt, "notes"):
        page.text(f"Note: {text_of(note)}", dim=True)
    for warning in list_of(receipt, "warnings"):
        page.verdict(f"Warning: {text_of(warning)}", "bad")
    page.contents()
    _sizes(page, receipt)
    _quality(page, receipt)
    _tensors(page, receipt)
    _tasks(page, receipt)
    _models(page, receipt)
    charts.add(page, receipt)
    _checks(page, receipt)
    provenance.method(page, receipt)
    if edges := records(receipt, "edges"):
        page.heading("What can be had from what")
        provenance.add_edges(page, edges)
    provenance.files(page, receipt)
    provenance.cost(page, receipt)
    provenance.commands(page, receipt, folder)
    made = f"Written by nett {receipt['nett']}" if receipt.get("nett") else "Written by nett"
    page.footer = f"{made}, {receipt['created']}." if receipt.get("created") else f"{made}."
    return page


def _title(receipt: Mapping[str, Any]) -> str:
    parts = [str(receipt[k]) for k in ("room", "method") if receipt.get(k) and receipt[k] != "core"]
    return " ".join(["nett", *parts]) if parts else "nett receipt"


def _subtitle(receipt: Mapping[str, Any]) -> str:
    inputs = records(receipt, "inputs")
    names = [text_of(i.get("name") or i.get("path")) for i in inputs]
    said = ", ".join(names[:6]) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")
    papers = ", ".join(map(text_of, list_of(receipt, "papers")))
    parts = [text_of(receipt.get("title")) + (f" ({papers})" if papers else "")]
    if names:
        parts.append(f"{len(inputs):,} {'input' if len(inputs) == 1 else 'inputs'}: {said}")
    return ". ".join(p.strip() for p in parts if p)


def _verdict(receipt: Mapping[str, Any]) -> tuple[str, Any]:
    """One sentence on size, checks and guarantee; bad where a check failed, good where all passed."""
    said = []
    before, after = finite(receipt.get("bytes_before")), finite(receipt.get("bytes_after"))
    if before is not None and after is not None:
        share = f" ({100 * after / before:.1f} % of before)" if before > 0 else ""
        said.append(f"{size(before)} before, {size(after)} after{share}.")
    checks = records(receipt, "checks")
    results = [_result(c) for c in checks]
    failed = [text_of(c.get("name")) for c, r in zip(checks, results, strict=True) if r == _FAILED]
    passed = results.count(_PASSED)
    if failed:
        said.append(f"{len(failed):,} of {len(checks):,} checks failed: {', '.join(failed[:5])}.")
    elif checks:
        rest = "" if passed == len(checks) else f", {len(checks) - passed:,} not run"
        said.append(f"{passed:,} of {len(checks):,} {'check' if len(checks) == 1 else 'checks'} passed{rest}.")
    meaning = {
        "exact": "what was removed is rebuilt bit for bit",
        "bounded": "an error bound holds by construction",
        "measured": "what it costs is measured, not bounded",
    }
    if guarantee := receipt.get("guarantee"):
        told = meaning.get(str(guarantee))
        said.append(f"Guarantee: {guarantee}" + (f" ({told})." if told else "."))
    wrong = failed or receipt.get("proof") == "failed"
    style = "bad" if wrong else "good" if checks and passed == len(checks) else "plain"
    return " ".join(said) or "This receipt holds no sizes and no checks.", style


def _sizes(page: Page, receipt: Mapping[str, Any]) -> None:
    before, after = receipt.get("bytes_before"), receipt.get("bytes_after")
    inputs = [i for i in records(receipt, "inputs") if i.get("bytes") is not None]
    if before is None and after is None and not inputs:
        return
    page.heading("Size")
    rows: list[tuple[str, Any, str]] = []
    if len(inputs) > 1:
        rows += [
            (text_of(i.get("name") or i.get("path")), i["bytes"], text_of(i.get("role"))) for i in inputs[:_MOST_INPUTS]
        ]
        if len(inputs) > _MOST_INPUTS:
            rest = inputs[_MOST_INPUTS:]
            rows.append((f"{len(rest):,} more inputs", sum(finite(i["bytes"]) or 0.0 for i in rest), ""))
    if before is not None:
        whole = sum(finite(i["bytes"]) or 0.0 for i in inputs)
        counted = "all inputs" if finite(before) == whole else "without what is needed afterwards too"
        rows.append(("before", before, counted if len(inputs) > 1 else ""))
    if after is not None:
        old, new = finite(before), finite(after)
        change = f"{100 * (new / old - 1):+.1f} %".replace("-", "−") if old and new is not None else ""
        rows.append(("after", after, change))
    page.bars(rows, title="Bytes on disk", unit="bytes")


def _quality(page: Page, receipt: Mapping[str, Any]) -> None:
    rows = records(receipt, "quality")
    if not rows:
        return
    page.heading("Quality before and after")
    notes = {
        "perplexity": ("Perplexity", "", "lower is better"),
        "kl": ("KL divergence to the original", "nats", "0 is no change"),
        "flips": ("Answers that changed", "", "share of top-1 predictions; lower is better"),
    }
    for key, (title, unit, note) in notes.items():
        measured = [r for r in rows if r.get(key) is not None]
        if not measured:
            continue
        models = list(dict.fromkeys(text_of(r.get("model")) for r in measured))
        texts = list(dict.fromkeys(text_of(r.get("text")) for r in measured))
        found = {(text_of(r.get("model")), text_of(r.get("text"))): r[key] for r in measured}
        if len(texts) == 1 or any((m, t) not in found for m in models for t in texts):
            bars = [(m if len(texts) == 1 else f"{m} · {t}", value, "") for (m, t), value in found.items()]
            page.bars(
                bars, title=title + (f" on {texts[0]}" if len(texts) == 1 and texts[0] else ""), unit=unit, note=note
            )
        else:
            series = {t: [found[m, t] for m in models] for t in texts}
            page.grouped_bars(models, series, title=title, unit=unit, note=note)
    record_table(page, rows)


def _tensors(page: Page, receipt: Mapping[str, Any]) -> None:
    rows = [r for r in records(receipt, "tensors") if "name" in r]
    rows.sort(key=lambda r: natural(text_of(r["name"])))
    titles = {
        "relative_change": "Relative change of each tensor",
        "relative_l2": "Relative L2 distance of each tensor",
        "error": "Error of each tensor",
        "density": "Share of entries kept in each tensor",
        "mask_ones": "Share of ones in each tensor's mask",
        "rank": "Rank of each tensor",
        "bytes_after": "Bytes of each tensor, after",
        "bytes_freed": "Bytes freed in each tensor",
    }
    drawn = [(k, t) for k, t in titles.items() if any(r.get(k) is not None for r in rows)]
    if not drawn:
        return
    page.heading("Tensors")
    for key, title in drawn[:2]:
        pairs = [(text_of(r["name"]), r[key]) for r in rows if r.get(key) is not None]
        page.figure_strip(pairs, title=title, unit="bytes" if key.startswith("bytes") else "")


def _tasks(page: Page, receipt: Mapping[str, Any]) -> None:
    rows = records(receipt, "tasks")
    if not rows:
        return
    page.heading("Tasks")
    for key, title, note in (
        ("relative_l2", "Distance of each restored task to its original", "relative L2; 0 is the original"),
        ("mask_ones", "Share of ones in each task's mask", ""),
    ):
        bars = [(text_of(r.get("name")), r[key], "") for r in rows if r.get(key) is not None]
        if bars:
            page.bars(bars, title=title, note=note)
    record_table(page, rows)


def _models(page: Page, receipt: Mapping[str, Any]) -> None:
    if rows := records(receipt, "models"):
        page.heading("Models")
        record_table(page, rows)


def _checks(page: Page, receipt: Mapping[str, Any]) -> None:
    if rows := records(receipt, "checks"):
        page.heading("Checks")
        rows = sorted(rows, key=lambda r: _result(r) != _FAILED)  # what failed first
        page.table(
            ["check", "result", "detail"],
            [[text_of(r.get("name")), _result(r), r.get("detail")] for r in rows],
        )


def _result(check: Mapping[str, Any]) -> str:
    if check.get("ok") is False:
        return _FAILED
    tried = check.get("ok") is True and not text_of(check.get("detail")).startswith("not tried")
    return _PASSED if tried else "– not run"  # what was not tried has not passed
