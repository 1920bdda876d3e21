"""The work of ``nett weights frontier``: which settings are tried, what each came to, and which nothing beats."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nett.core.cards import all_cards, find_card
from nett.core.errors import Refused, UsageError
from nett.core.moments import NAMES
from nett.core.progress import report
from nett.core.receipt import NAME, read_receipt
from nett.core.registry import Card
from nett.core.report import Page
from nett.core.report.words import number, size
from nett.weights import engine
from nett.weights.masks import parse_pattern
from nett.weights.protocol import SHARED, SINGLE

_WHERE = "weights/frontier"


def run_frontier(
    asset: str,
    *,
    eval: Path | None,
    calibration: Path | None,
    methods: str,
    bits: str,
    sparsity: str,
    settings: Path | None,
    peers: Path | None,
    work: Path | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Every setting's bytes and quality; see :func:`nett.weights.frontier`."""
    if eval is None:
        raise UsageError("judges every result by one text", where=_WHERE, hint="Add --eval FILE.")
    tried = _read_list(settings, "method") if settings is not None else None
    others = _read_list(peers, "name") if peers is not None else []
    if tried is None:
        tried = _settings(_cards(methods, calibration), bits, sparsity)
    points: list[dict[str, Any]] = []
    refused: list[str] = []
    holder = tempfile.TemporaryDirectory(prefix="nett-") if work is None else nullcontext(str(work))
    with holder as place:
        report.begin("methods", len(tried), "settings")
        for one in tried:
            card = find_card(str(one["method"]), "weights")
            given = {k: v for k, v in one.items() if k != "method"}
            name = " ".join([card.name, *(f"{k}={v}" for k, v in given.items())])
            out = Path(place) / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
            try:
                receipt = _made(card, asset, given, out, eval, calibration, options)
            except Refused as error:
                refused.append(f"{name}: {error}")
            else:
                points.append(_point(name, card, given, receipt))
            report.step(1)
        report.end()
    if not points:
        raise Refused(f"no setting could be tried: {refused[0] if refused else 'none applies'}", where=asset)
    first = points[0]
    judged = first.pop("judged")
    for p in points[1:]:
        p.pop("judged")
    original = {
        "name": "original", "method": None, "bytes": first.pop("bytes_before"), "kl": 0.0, "flips": 0.0,
        "perplexity": judged["perplexity_original"], "seconds": 0.0,
    }  # fmt: skip
    for p in points[1:]:
        p.pop("bytes_before")
    every = [original, *points]
    _mark(every)
    for peer in others:
        peer["beaten_by"] = [
            p["name"] for p in points if p["bytes"] <= peer["bytes"] and p["perplexity"] <= peer["perplexity"]
        ]
    text = {k: judged[k] for k in ("text", "sha256", "windows", "length")}
    return {"model": asset, "text": text, "points": every, "peers": others, "refused": refused}


def _cards(methods: str, calibration: Path | None) -> list[Card]:
    if methods != "auto":
        return [find_card(name.strip(), "weights") for name in methods.split(",") if name.strip()]
    found = [
        c
        for c in all_cards()
        if c.room == "weights" and c.kind == "reduce" and not c.command and "compressed" not in c.operands
        and c.operands and c.operands[0] in (SINGLE, SHARED)
    ]  # fmt: skip
    return [c for c in found if calibration is not None or not set(c.operands) & set(NAMES)]


def _settings(cards: Sequence[Card], bits: str, sparsity: str) -> list[dict[str, Any]]:
    """Each method with each width or sparsity that it takes; with its defaults where it has neither."""
    found: list[dict[str, Any]] = []
    for card in cards:
        width, share = card.parameter("bits"), card.parameter("sparsity")
        one: dict[str, Any] = {"method": card.name}
        if width is not None:
            for b in bits.split(","):
                try:
                    found.append(one | {"bits": width.check(b.strip(), card.key)})
                except UsageError:
                    if not b.strip().isdigit():
                        raise
        elif share is not None:
            for s in map(str.strip, sparsity.split(",")):
                pattern = ":" in s and parse_pattern(s) is not None
                found.append(one | ({"pattern": s} if pattern else {"sparsity": share.check(s, card.key)}))
        else:
            found.append(one)
    return found


def _made(
    card: Card,
    asset: str,
    given: Mapping[str, Any],
    out: Path,
    eval: Path,
    calibration: Path | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The receipt of a setting; of a result that lies in the work folder already, its own."""
    if (out / NAME).is_file():
        known = read_receipt(out)
        if known["method"] == card.name and known["figures"].get("judged"):
            return known
        raise UsageError("holds a result that was not judged", where=out, hint="Delete it, or name another --work.")
    needed = bool(set(card.operands) & {*NAMES, "windows"})
    if needed and calibration is None:
        raise Refused(f"{card.name} needs a text to calibrate on (--calibration)")
    more: dict[str, Any] = {"calibration": calibration} if needed else {}
    return engine.run(card, [asset], given, out=out, eval=eval, **more, **options)


def _point(name: str, card: Card, given: Mapping[str, Any], receipt: Mapping[str, Any]) -> dict[str, Any]:
    judged, figures = receipt["figures"]["judged"], receipt["figures"]
    weights = sum(o["bytes"] for o in receipt["outputs"] if o["path"].endswith((".safetensors", ".gguf")))
    return {
        "name": name,
        "method": card.key,
        "parameters": dict(given),
        "bytes": weights,
        "bits_a_weight": figures.get("bits_a_weight"),
        "kl": judged["kl"]["mean"],
        "kl_interval": [judged["kl"]["low"], judged["kl"]["high"]],
        "flips": judged["flips"]["mean"],
        "perplexity": judged["perplexity"],
        "seconds": receipt["seconds"],
        "bytes_before": receipt["inputs"][0]["bytes"],
        "judged": judged,
    }


def _mark(points: Sequence[dict[str, Any]]) -> None:
    """``frontier``: whether no other point is at most as large and at most as far from the original, and not equal."""
    for p in points:
        p["frontier"] = not any(
            q["bytes"] <= p["bytes"] and q["kl"] <= p["kl"] and (q["bytes"], q["kl"]) != (p["bytes"], p["kl"])
            for q in points
        )


def _read_list(file: Path, key: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(one, dict) and key in one for one in found):
            raise ValueError(f"expected a list of objects with an entry {key!r}")
        return found
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be used: {error}", where=file) from error


def words_of(told: Mapping[str, Any]) -> list[str]:
    """The points by bytes; a star where nothing is smaller and nearer to the original."""
    lines = [f"{'':2}{'setting':<36}{'bytes':>12}{'bits':>7}{'KL':>11}{'flips':>9}{'perplexity':>12}"]
    for p in sorted(told["points"], key=lambda p: p["bytes"]):
        bits = "" if p.get("bits_a_weight") is None else f"{p['bits_a_weight']:.2f}"
        star = "* " if p["frontier"] else "  "
        lines.append(
            f"{star}{p['name'][:35]:<36}{size(p['bytes']):>12}{bits:>7}{p['kl']:>11.5f}{p['flips']:>9.2%}"
            f"{p['perplexity']:>12.4g}"
        )
    for p in told["peers"]:
        beaten = f"; no larger and no worse: {', '.join(p['beaten_by'][:3])}" if p["beaten_by"] else ""
        lines.append(f"peer {p['name']}: {size(p['bytes'])}, perplexity {number(p['perplexity'])}{beaten}")
    return lines + [f"not tried: {r}" for r in told["refused"]]


def page_of(told: Mapping[str, Any]) -> Page:
    """The same as a page."""
    page = Page("nett weights frontier", str(told["model"]))
    best = [p for p in told["points"] if p["frontier"] and p["method"]]
    page.verdict(f"{len(best)} of {len(told['points']) - 1} settings are beaten by nothing that is smaller.")
    series: dict[str, list[tuple[float, float]]] = {}
    for p in sorted(told["points"], key=lambda p: p["bytes"]):
        if p["method"]:
            series.setdefault(p["method"].partition("/")[2], []).append((p["bytes"] / 1e6, p["kl"]))
    page.lines(series, title="What was lost against what is left", xlabel="MB", ylabel="KL to the original, nats")
    peers = {p["name"]: [(p["bytes"] / 1e6, p["perplexity"])] for p in told["peers"]}
    mine: dict[str, list[tuple[float, float]]] = {}
    for p in sorted(told["points"], key=lambda p: p["bytes"]):
        if p["method"]:
            mine.setdefault(p["method"].partition("/")[2], []).append((p["bytes"] / 1e6, p["perplexity"]))
    page.lines(mine | peers, title="Perplexity", xlabel="MB", ylabel="perplexity")
    headers = ["setting", "bytes", "bits a weight", "KL", "flips", "perplexity", "seconds", "frontier"]
    rows = [
        [
            p["name"],
            p["bytes"],
            p.get("bits_a_weight"),
            p["kl"],
            p["flips"],
            p["perplexity"],
            p["seconds"],
            p["frontier"],
        ]
        for p in sorted(told["points"], key=lambda p: p["bytes"])
    ]
    page.table(headers, rows)
    return page
