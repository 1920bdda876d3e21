"""A simulation for people: lines on a terminal, and a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.report import Page
from nett.core.report.words import number, size

NAMES = {
    "gpu": "xPU only",
    "pim": "Logic-PIM only",
    "best": "faster one for each layer",
    "experts": "+ experts on both",
    "attention": "+ attention on both",
    "duplex": "Duplex (both of these)",
}
SWEPT = {
    "batch": "requests at a time",
    "input": "tokens of a prompt (mean)",
    "output": "tokens of an answer (mean)",
    "experts": "experts of a layer (of the same total size)",
    "pim_bandwidth": "bandwidth of Logic-PIM (times the xPU's, or B/s)",
    "pim_flops": "operations of Logic-PIM (a byte of its bandwidth, or FLOP/s)",
}
_PARTS = {"fc": "other layers", "attention": "attention", "experts": "experts", "link": "between devices"}
Told = Mapping[str, Any]


def words_of(told: Told) -> list[str]:
    """A row for each scheme, and what limits it."""
    schemes = told["schemes"]
    lines = [_setting(told)]
    head = f"{'scheme':<27}{'tokens/s':>10}{'ratio':>7}{'first token p50/p99':>22}{'between p50/p90/p99':>26}"
    lines.append(head + f"{'mJ/token':>10}{'ratio':>7}{'xPU busy':>10}{'PIM busy':>10}")
    first = next(iter(schemes.values()))
    for name, f in schemes.items():
        waits, gaps = f["first_token"], f["between_tokens"]
        row = f"{NAMES[name]:<27}{f['tokens_a_second']:>10,.0f}{f['tokens_a_second'] / first['tokens_a_second']:>7.2f}"
        row += f"{_ms(waits, 'p50', 'p99'):>22}{_ms(gaps, 'p50', 'p90', 'p99'):>26}"
        row += f"{1e3 * f['joules_a_token']:>10.2f}{f['joules_a_token'] / first['joules_a_token']:>7.2f}"
        lines.append(row + f"{100 * f['use']['xpu_busy']:>9.0f}%{100 * f['use']['pim_busy']:>9.0f}%")
    lines.append("(ratios to the first row; waits in milliseconds)")
    for row in told["layers"]:
        if row["stage"] == "decoding" and row["layer"] in ("experts", "attention, decoding"):
            lines.append(f"{row['layer']}: {row['op_b']:.1f} operations a byte while decoding; {_faster(row)}")
    for name, rows in told.get("sweep", {}).items():
        lines.append(f"{SWEPT[name]}: " + "; ".join(_swept(r) for r in rows))
    return [*lines, *(f"note: {n}" for n in told["notes"])]


def _setting(told: Told) -> str:
    model, held, asked = told["model"], told["memory"], told["requests"]
    experts = f"{model['experts']} experts, {model['top_k']} a token" if model["experts"] else "dense"
    return (
        f"{model['layers']} layers ({experts}), {size(held['weight_bytes'])} of weights on {told['hardware']['nodes']} x "
        f"{told['hardware']['devices']} devices, room for {held['tokens']:,} tokens; {asked['count']:,} requests of "
        f"{asked['input']:,.0f} + {asked['output']:,.0f} tokens ({asked['arrivals']})"
    )


def _ms(spread: Mapping[str, float | None], *names: str) -> str:
    return " / ".join("–" if (v := _milli(spread[n])) is None else f"{v:,.1f}" for n in names)


def _milli(value: float | None) -> float | None:
    return None if value is None else 1e3 * value


def _faster(row: Told) -> str:
    near, far = row["pim_seconds"], row["xpu_seconds"]
    who, ratio = ("Logic-PIM", far / near) if near < far else ("the xPU", near / far)
    return f"{who} is {ratio:.2f} times as fast"


def _swept(row: Told) -> str:
    if "left_out" in row:
        return f"{row['value']:g} left out ({row['left_out']})"
    rates = list(row["tokens_a_second"].values())
    return f"{row['value']:g}: {rates[-1]:,.0f} tokens/s ({rates[-1] / rates[0]:.2f}x)"


def page_of(told: Told) -> Page:
    """The same with pictures."""
    page = Page("nett experts simulate", str(told["settings"]))
    schemes = told["schemes"]
    names = [NAMES[s] for s in schemes]
    first, last = next(iter(schemes.values())), list(schemes.values())[-1]
    ratio, joules = (last[k] / first[k] for k in ("tokens_a_second", "joules_a_token"))
    page.verdict(
        f"{names[-1]} gives {number(last['tokens_a_second'])} tokens a second, {ratio:.2f} times as many as {names[0]}, for "
        f"{joules:.2f} times the energy a token."
    )
    page.text(_setting(told) + ".")
    for note in told["notes"]:
        page.text(note, dim=True)
    page.contents()
    page.heading("Speed, waits and energy")
    page.bars(
        [(NAMES[s], f["tokens_a_second"]) for s, f in schemes.items()], title="Tokens a second", note="more is better"
    )
    for key, title in (
        ("between_tokens", "Between two tokens of a request"),
        ("first_token", "From arrival to the first token"),
    ):
        page.grouped_bars(
            names, {p: [_milli(f[key][p]) for f in schemes.values()] for p in ("p50", "p90", "p99")},
            title=title, unit="ms", note="less is better; percentiles",
        )  # fmt: skip
    parts = list(_PARTS)
    page.grouped_bars(
        names, {_PARTS[k]: [1e3 * f["joules_a_token_by"][k] for f in schemes.values()] for k in parts},
        title="Energy a token, by what it is for", unit="mJ", note="less is better",
    )  # fmt: skip
    page.grouped_bars(
        names, {_PARTS[k]: [100 * f["seconds_by"][k] for f in schemes.values()] for k in parts},
        title="Time, by what it is for", unit="%",
    )  # fmt: skip
    use = {"xPU busy": "xpu_busy", "xPU's operations": "xpu_compute", "Logic-PIM busy": "pim_busy", "Logic-PIM's operations": "pim_compute"}  # fmt: skip
    page.grouped_bars(
        names, {shown: [100 * f["use"][k] for f in schemes.values()] for shown, k in use.items()},
        title="How far the processors are used", unit="%", note="busy: of the time; operations: of those at peak rate",
    )  # fmt: skip
    _layers(page, told)
    if "sweep" in told:
        _sweep(page, told["sweep"])
    page.heading("How")
    page.key_values(
        {"model": told["model"], "hardware": told["hardware"], "memory": told["memory"], "requests": told["requests"]}
    )
    return page


def _layers(page: Page, told: Told) -> None:
    page.heading("Operations a byte")
    page.text("Of one device, all layers of a kind together; on: the processor that is faster and able.", dim=True)
    page.table(
        ["stage", "layer", "operations a byte", "GFLOP", "MB", "xPU, ms", "Logic-PIM, ms", "on"],
        [
            [r["stage"], r["layer"], r["op_b"], r["flops"] / 1e9, r["bytes"] / 1e6, 1e3 * r["xpu_seconds"],
             1e3 * r["pim_seconds"], {"pim": "Logic-PIM", "xpu": "xPU"}[r["on"]]]
            for r in told["layers"]
        ],
    )  # fmt: skip


def _sweep(page: Page, sweep: Mapping[str, Any]) -> None:
    page.heading("One thing changed at a time")
    kinds = {"tokens_a_second": "Tokens a second", "joules_a_token": "Energy a token, mJ"}
    for name, rows in sweep.items():
        kept = [r for r in rows if "left_out" not in r]
        for key, title in kinds.items() if kept else ():
            factor = 1e3 if key == "joules_a_token" else 1.0
            page.lines(
                {NAMES[s]: [(r["value"], factor * r[key][s]) for r in kept] for s in kept[0][key]},
                title=f"{title}, by {SWEPT[name]}", xlabel=SWEPT[name], ylabel=title,
            )  # fmt: skip
        for row in rows:
            if "left_out" in row:
                page.text(f"{SWEPT[name]}: {row['value']:g} is left out: {row['left_out']}.", dim=True)
