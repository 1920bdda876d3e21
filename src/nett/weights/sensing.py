"""The work of ``nett weights sensitivity``: trials, the choice under a budget, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nett.core import moments
from nett.core.cards import find_card
from nett.core.errors import UsageError
from nett.core.report import Page
from nett.core.report.words import number, size
from nett.core.texts import read_text
from nett.weights.budget import choose, parse_budget
from nett.weights.formats import format_named
from nett.weights.job import with_group
from nett.weights.opening import opened
from nett.weights.trials import Trial, try_all

_MOST = 12  # rows that are said


def sense(
    asset: str,
    *,
    eval: Path | None,
    calibration: Path | None,
    by: str,
    bits: str,
    group: int,
    symmetric: bool,
    per: str,
    budget: str | None,
    samples: int,
    length: int,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """Every trial, worst first, and the choice under ``budget``; see :func:`nett.weights.sensitivity`."""
    import torch

    where, card = "weights/sensitivity", find_card(by, "weights")
    if card.parameter("bits") is None or card.command:
        raise UsageError(f"by = {by!r} is no method that takes bits", where=where, hint="rtn or gptq, for example.")
    if {"source", "compressed"} & set(card.operands):
        what = "changes other tensors too" if "source" in card.operands else "takes a compressed model as well"
        raise UsageError(
            f"by = {by!r} {what}, so it cannot be tried on one part alone", where=where, hint="rtn or gptq."
        )
    if eval is None:
        raise UsageError("compares predictions, so it needs a text", where=where, hint="Add --eval FILE.")
    widths = widths_of(bits, where)
    wanted = tuple(o for o in card.operands if o in moments.NAMES)
    began = time.monotonic()
    with opened(asset, device, threads) as skeleton:
        text = read_text(
            skeleton, calibration=calibration, eval=eval, samples=128, length=length, needed=bool(wanted),
            where=where, judged=samples,
        )  # fmt: skip
        assert text.judging is not None
        notes = list(text.notes)
        layers = [skeleton.linears(i) for i in range(len(skeleton))]
        given = {k: v for k, v in {"group": group, "symmetric": symmetric}.items() if card.parameter(k)}
        common = with_group(card.resolve(given), layers, notes)
        fmt = format_named("compressed-tensors")

        def bytes_of(layer: Any, answer: Any) -> int:
            return sum(t.numel() * t.element_size() for t in fmt.tensors(layer, answer)[0].values())

        with skeleton.held():
            trials = try_all(
                card,
                skeleton,
                {str(b): common | {"bits": b} for b in widths},
                torch.from_numpy(text.judging.ids),
                per=per,
                wanted=wanted,
                calibration=torch.from_numpy(text.calibration.ids) if text.calibration is not None else None,
                size=bytes_of,
            )
        told: dict[str, Any] = {
            "model": asset,
            "by": card.key,
            "parameters": {k: v for k, v in common.items() if k != "bits"},
            "text": text.judging.as_json(),
            "weights": sum(layer.rows * layer.columns for block in layers for layer in block),
            "parts": _rows(trials),
            "notes": notes,
        }
    if budget is not None:
        told |= _chosen(trials, budget, told["weights"])
    return told | {"seconds": round(time.monotonic() - began, 1)}


def widths_of(bits: str, where: str) -> list[int]:
    """Widths of a list such as 2,3,4,8, ascending; UsageError where it is none."""
    try:
        found = sorted({int(b) for b in bits.split(",")})
    except ValueError as error:
        raise UsageError(f"bits = {bits!r} is not a list of whole numbers such as 2,3,4,8", where=where) from error
    if not found or found[0] < 1 or found[-1] > 8:
        raise UsageError(f"bits = {bits!r}: 1 to 8 bits are known", where=where)
    return found


def _rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One record a part: its layers, and what each width costs; the part whose narrowest width costs most first."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for t in trials:
        row = found.setdefault(
            (t.part.block, t.part.name),
            {
                "block": t.part.block,
                "part": t.part.name,
                "layers": [layer.module for layer in t.part.layers],
                "weights": t.part.weights,
                "bits": {},
            },
        )
        row["bits"][t.setting] = {"kl": asdict(t.kl), "flips": t.flips, "loss": t.loss, "bytes": t.bytes}
    return sorted(found.values(), key=lambda r: -next(iter(r["bits"].values()))["kl"]["mean"])


def _chosen(trials: Sequence[Trial], budget: str, weights: int) -> dict[str, Any]:
    parts = list(dict.fromkeys(t.part for t in trials))
    costs: list[dict[str, float]] = [{} for _ in parts]
    sizes: list[dict[str, int]] = [{} for _ in parts]
    place = {part: i for i, part in enumerate(parts)}
    for t in trials:
        costs[place[t.part]][t.setting], sizes[place[t.part]][t.setting] = t.kl.mean, t.bytes
    choice = choose(costs, sizes, parse_budget(budget, weights))
    layers = {
        layer.module: {"bits": int(setting)} for i, setting in choice.settings.items() for layer in parts[i].layers
    }
    figures = {
        "budget": budget,
        "bytes": choice.bytes,
        "bits_a_weight": round(8 * choice.bytes / weights, 4),
        "kl_expected": choice.cost,
        "kl_bound": choice.bound,
    }
    return {"choice": figures, "layers": layers}


def words_of(told: Mapping[str, Any]) -> list[str]:
    """What a terminal shows: the worst parts, and the choice."""
    widths = list(told["parts"][0]["bits"])
    lines = [f"KL to the original in nats, one part at a time by {told['by']} ({told['text']['windows']} windows of {told['text']['length']} tokens):"]  # fmt: skip
    lines.append(f"{'block':>6}  {'part':<28}" + "".join(f"{b + ' bits':>12}" for b in widths))
    for row in told["parts"][:_MOST]:
        values = "".join(f"{row['bits'][b]['kl']['mean']:>12.5f}" for b in widths)
        lines.append(f"{row['block']:>6}  {row['part'][:28]:<28}{values}")
    if len(told["parts"]) > _MOST:
        lines.append(f"… and {len(told['parts']) - _MOST} parts more that cost less (--json FILE has all)")
    if "choice" in told:
        c = told["choice"]
        lines.append(
            f"within {c['budget']}: {c['bits_a_weight']:.3f} bits a weight, {size(c['bytes'])}; the parts' KL add up to"
            f" {number(c['kl_expected'])} (give the --json file to nett weights METHOD --per-layer)"
        )
    return lines + [f"note: {n}" for n in told["notes"]]


def page_of(told: Mapping[str, Any]) -> Page:
    """The same as a page: a picture of each width, and the table."""
    page = Page("nett weights sensitivity", str(told["model"]))
    worst = told["parts"][0]
    first = next(iter(worst["bits"]))
    page.verdict(
        f"Block {worst['block']}, {worst['part']}, hurts most: at {first} bits alone it moves the predictions by "
        f"{number(worst['bits'][first]['kl']['mean'])} nats."
    )
    if "choice" in told:
        c = told["choice"]
        page.text(
            f"Within {c['budget']} the best choice takes {c['bits_a_weight']:.3f} bits a weight ({size(c['bytes'])});"
            f" the parts' costs add up to {number(c['kl_expected'])} nats."
        )
    page.contents()
    blocks = sorted({r["block"] for r in told["parts"]})
    names = list(dict.fromkeys(r["part"] if not r["part"].isdigit() else "block" for r in told["parts"]))
    page.heading("Cost of each part")
    for bits in worst["bits"]:
        known = {
            (r["block"], "block" if r["part"].isdigit() else r["part"]): r["bits"][bits]["kl"]["mean"]
            for r in told["parts"]
        }
        page.heat(
            names,
            [str(b) for b in blocks],
            [[known.get((b, n)) for b in blocks] for n in names],
            title=f"KL to the original with one part at {bits} bits, by block",
            note="nats a token; stronger is worse",
        )
    page.heading("All parts")
    widths = list(worst["bits"])
    rows = [[r["block"], r["part"], r["weights"], *(r["bits"][b]["kl"]["mean"] for b in widths)] for r in told["parts"]]
    page.table(["block", "part", "weights", *(f"KL at {b} bits" for b in widths)], rows)
    if "layers" in told:
        page.heading("Bits of each layer")
        page.table(["layer", "bits"], [[n, v["bits"]] for n, v in told["layers"].items()])
    return page
