"""The work of ``nett cache frontier``: every policy at every budget on one bed, and which nothing beats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.cache.engine import serve
from nett.cache.judging import bed_of, judge
from nett.cache.opening import opened
from nett.cache.policy import Policy, check_model
from nett.core.cards import all_cards, find_card
from nett.core.errors import Refused, UsageError
from nett.core.progress import report
from nett.core.registry import Card
from nett.core.report import Page
from nett.core.report.words import size
from nett.core.windows import read_windows

_WHERE = "cache/frontier"


def run_frontier(
    asset: str,
    *,
    text: Path | None,
    policies: str,
    budgets: str,
    bits: str,
    samples: int,
    context: int,
    follow: int,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """See :func:`nett.cache.frontier`."""
    import torch

    if text is None:
        raise UsageError("judges policies by a text", where=_WHERE, hint="Add --text FILE.")
    tried = _tried(policies, budgets, bits)
    model, tokenizer = opened(asset, device, threads)
    check_model(model, _WHERE)
    most = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 60)
    if context + follow > most:
        raise Refused(
            f"--context and --follow come to {context + follow:,} tokens, the model has {most:,} positions", where=asset
        )
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    windows = read_windows(text, tokenizer, samples=samples, length=context + follow, vocabulary=vocabulary)
    bed = bed_of(model, torch.from_numpy(windows.ids).to(device), context)
    points: list[dict[str, Any]] = []
    report.begin("policies", len(tried), "settings")
    for name, policy in tried:
        found = judge(model, bed, policy).as_json()
        points.append({"name": name, "policy": policy.card.key, **found})
        report.step(1)
    report.end()
    for p in points:
        p["frontier"] = not any(
            q["bytes"] <= p["bytes"]
            and q["kl"]["mean"] <= p["kl"]["mean"]
            and (q["bytes"], q["kl"]["mean"]) != (p["bytes"], p["kl"]["mean"])
            for q in points
        )
    return {"model": asset, "text": windows.as_json() | {"context": context}, "points": points}


def _tried(policies: str, budgets: str, bits: str) -> list[tuple[str, Policy]]:
    if policies == "auto":
        cards = [c for c in all_cards() if c.room == "cache" and c.kind == "serve" and not c.command and _is_policy(c)]
    else:
        cards = [find_card(p.strip(), "cache") for p in policies.split(",") if p.strip()]
    found = []
    for card in cards:
        if not _is_policy(card):
            raise UsageError(f"{card.key} is no policy on a cache", where=_WHERE)
        for given in _settings(card, budgets, bits):
            name = " ".join([card.name, *(f"{k}={v}" for k, v in given.items())])
            found.append((name, serve(card, given)))
    if not found:
        raise UsageError("no policy is left to try", where=_WHERE)
    return found


def _is_policy(card: Card) -> bool:
    return bool(card.operands) and card.operands[0] in (
        "keys", "values", "mass", "reach", "recent", "queries", "sizes", "hidden", "config",
    )  # fmt: skip


def _settings(card: Card, budgets: str, bits: str) -> list[dict[str, Any]]:
    if card.name == "full":
        return [{}]
    if "keep" in card.operands:
        return [{"budget": b.strip()} for b in budgets.split(",") if b.strip()]
    width = card.parameter("bits")
    return [{}] if width is None else [{"bits": width.check(b.strip(), card.key)} for b in bits.split(",") if b.strip()]


def words_of(told: Mapping[str, Any]) -> list[str]:
    """The points by bytes; a star where nothing holds fewer bytes and is nearer to the full cache."""
    text = told["text"]
    lines = [f"{text['windows']} texts, {text['context']} tokens and {text['length'] - text['context']} that follow"]
    lines.append(f"{'':2}{'policy':<28}{'held':>11}{'share':>8}{'KL':>11}{'flips':>9}{'perplexity':>12}")
    for p in sorted(told["points"], key=lambda p: p["bytes"]):
        star = "* " if p["frontier"] else "  "
        lines.append(
            f"{star}{p['name'][:27]:<28}{size(p['bytes']):>11}{p['share']:>8.1%}{p['kl']['mean']:>11.5f}"
            f"{p['flips']['mean']:>9.2%}{p['perplexity']:>12.4g}"
        )
    return lines


def page_of(told: Mapping[str, Any]) -> Page:
    """The same as a page."""
    page = Page("nett cache frontier", str(told["model"]))
    best = [p["name"] for p in sorted(told["points"], key=lambda p: p["bytes"]) if p["frontier"]]
    page.verdict(f"On the frontier: {', '.join(best)}.")
    series: dict[str, list[tuple[float, ...]]] = {}
    for p in sorted(told["points"], key=lambda p: p["bytes"]):
        name = p["policy"].partition("/")[2]
        if name != "full":
            kl = p["kl"]
            series.setdefault(name, []).append((100 * p["share"], kl["mean"], kl["low"], kl["high"]))
    page.lines(
        series,
        title="What changes against what is held",
        xlabel="% of the full cache's bytes",
        ylabel="KL, nats a token",
    )
    headers = ["policy", "bytes", "share", "KL", "low", "high", "flips", "perplexity", "seconds a step", "frontier"]
    rows = [
        [
            p["name"],
            p["bytes"],
            p["share"],
            *p["kl"].values(),
            p["flips"]["mean"],
            p["perplexity"],
            p["seconds_a_token"],
            p["frontier"],
        ]
        for p in sorted(told["points"], key=lambda p: p["bytes"])
    ]
    page.table(headers, rows)
    return page
