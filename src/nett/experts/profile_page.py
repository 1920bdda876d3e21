"""A profile for people: lines on a terminal, and a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.report import Page
from nett.core.report.words import number, size

_MOST = 8  # lines of a kind that are said


def words_of(told: Mapping[str, Any]) -> list[str]:
    """What a person wants to know first."""
    layers = told["layers"]
    experts = sorted({layer["experts"] for layer in layers})
    kinds = f"{experts[0]}" if len(experts) == 1 else f"{experts[0]} to {experts[-1]}"
    lines = [
        f"{len(layers)} mixtures of {kinds} experts, of which a token chooses {layers[0]['chosen']}; "
        f"{told['tokens']:,} tokens of {', '.join(t['name'] for t in told['texts'])}",
        "",
        f"{'segment':>9}{'SRP':>8}{'95 % interval':>18}{'by chance':>11}{'size of set':>13}",
    ]
    for m, one in told["srp"].items():
        span = f"{one['low']:.3f} to {one['high']:.3f}"
        lines.append(f"{m:>9}{one['value']:>8.3f}{span:>18}{one['chance']:>11.3f}{one['size']:>12.2f}x")
    ahead = str(told["advice"]["ahead"])
    lines += [
        "",
        f"{'cache':>9}{'of chosen':>11}{'bytes':>10}{f'hits, {ahead} ahead':>17}{'hits, LRU':>11}{'one for all':>13}",
    ]
    for one in told["caches"]:
        shared = one["hits_shared"].get(ahead)
        lines.append(
            f"{one['experts']:>9}{one['multiple']:>10.2f}x{size(one['bytes']):>10}{one['hits'][ahead]:>17.3f}"
            f"{one['hits']['0']:>11.3f}{'-' if shared is None else f'{shared:.3f}':>13}"
        )
    lines += ["", *advice(told), *_use(told), *_tasks(told)]
    return [*lines, *(f"note: {n}" for n in told["notes"])]


def advice(told: Mapping[str, Any]) -> list[str]:
    """Which cache, in sentences."""
    said = told["advice"]
    pays, reaches, plain = said["pays"], said["reaches"], said["reaches_lru"]
    best = max(told["srp"].values(), key=lambda one: one["value"] - one["chance"], default=None)
    lines = [
        f"A cache of {pays['experts']} experts a mixture ({pays['multiple']:g} times those that a token chooses, "
        f"{size(pays['bytes'])} of {size(said['all_bytes'])}) is where more begins to pay less: at best {pays['hits']:.1%} hits "
        f"({pays['low']:.1%} to {pays['high']:.1%}), {pays['hits_lru']:.1%} with LRU.",
        f"{said['wanted']:.0%} hits take {reaches['experts']} experts a mixture at best, {plain['experts']} with LRU.",
    ]
    if best is not None and best["value"] - best["chance"] < 0.05:
        lines.append(
            "Neighbouring tokens share experts hardly more than any tokens do: offloading experts would read a lot."
        )
    return lines


def _use(told: Mapping[str, Any]) -> list[str]:
    layers = told["layers"]
    uneven = max(layers, key=lambda x: x["balance"]["largest"])
    lines = [
        f"Most uneven: {uneven['name']}, its busiest expert has {uneven['balance']['largest']:.2g} times its even share; "
        f"{uneven['balance']['effective']:.3g} of {uneven['experts']} experts in effect."
    ]
    alike = [(p["cosine"], x["name"], p) for x in layers for p in x["similar"][:1]]
    if alike:
        cosine, name, pair = max(alike, key=lambda one: one[0])
        lines.append(
            f"Most alike: experts {pair['first']} and {pair['second']} of {name}, cosine of outputs {cosine:.3f}."
        )
    together = [(p["share"] * (p["lift"] > 1), x["name"], p) for x in layers for p in x["coactive"]]
    if together:
        share, name, pair = max(together, key=lambda one: one[0])
        lines.append(
            f"Most together: experts {pair['first']} and {pair['second']} of {name}, {share:.0%} of the less used one's tokens "
            f"({pair['lift']:.2g} times chance)."
        )
    return lines


def _tasks(told: Mapping[str, Any]) -> list[str]:
    if not told["by_text"]:
        return []
    pairs = sorted(told["by_text"]["divergence"], key=lambda p: -p["bits"])
    lines = [f"{p['first']} and {p['second']}: use of experts {p['bits']:.3f} bits apart" for p in pairs[:_MOST]]
    home = told["by_text"]["at_home"]
    count = sum(x["experts"] for x in told["layers"])
    return [*lines, f"{len(home)} of {count} experts have four fifths of their use in one text."]


def page_of(told: Mapping[str, Any]) -> Page:
    """The same with pictures."""
    page = Page("nett experts profile", str(told["model"]))
    page.verdict(advice(told)[0])
    for line in [*advice(told)[1:], *_use(told), *_tasks(told)]:
        page.text(line)
    page.contents()
    _consistency(page, told)
    _caches(page, told)
    _balance(page, told)
    _pairs(page, told)
    _by_text(page, told)
    page.heading("How")
    page.table(
        ["text", "file", "windows", "tokens", "sha256"],
        [[t["name"], t["file"], t["windows"], t["tokens"], t["sha256"][:16]] for t in told["texts"]],
    )
    for note in told["notes"]:
        page.text(note, dim=True)
    return page


def _consistency(page: Page, told: Mapping[str, Any]) -> None:
    page.heading("Local routing consistency")
    page.text(
        "SRP: for every segment of neighbouring tokens the best fixed set of experts, and the F1 score of that set against "
        "what the tokens choose. By chance: what independent choices with the same shares would give."
    )
    srp = told["srp"]
    if len(srp) > 1:
        page.lines(
            {
                "all mixtures": [(int(m), s["value"], s["low"], s["high"]) for m, s in srp.items()],
                "by chance": [(int(m), s["chance"]) for m, s in srp.items()],
            },
            title="SRP by length of segment", xlabel="tokens", ylabel="SRP", note="band: 95 % interval; higher is more local",
        )  # fmt: skip
    names = [x["name"] for x in told["layers"]]
    page.heat(
        names, [f"{m} tokens" for m in srp], [[x["srp"][m]["value"] for m in srp] for x in told["layers"]],
        title="SRP of each mixture",
    )  # fmt: skip
    if srp:
        middle = list(srp)[len(srp) // 2]
        page.heat(
            names, _experts(told), [x["srp_by_expert"][middle] for x in told["layers"]],
            title=f"SRP of each expert, segments of {middle} tokens", note="an expert that comes in runs, or is always on, is dark",
        )  # fmt: skip


def _caches(page: Page, told: Mapping[str, Any]) -> None:
    page.heading("Caches of experts")
    most = max(x["experts"] for x in told["layers"])
    series: dict[str, list[tuple[float, float]]] = {}
    weights = [sum(x["counts"]) for x in told["layers"]]
    for m in told["layers"][0]["hits"]:
        name = "LRU" if m == "0" else f"SCH, {m} tokens ahead"
        rows = [x["hits"][m] + [1.0] * (most - x["experts"]) for x in told["layers"]]
        mean = [sum(w * r[i] for w, r in zip(weights, rows, strict=True)) / max(1, sum(weights)) for i in range(most)]
        series[name] = [(i + 1, mean[i]) for i in range(most)]
    page.lines(
        series, title="Hit rate by size of cache", xlabel="experts a mixture", ylabel="hits",
        note="mean over all choices; SCH knows the next tokens, LRU does not",
    )  # fmt: skip
    segments = list(told["srp"])
    page.table(
        ["experts a mixture", "times those chosen", "bytes", "LRU", *(f"SCH {m}" for m in segments), "one cache for all, LRU aside"],
        [
            [c["experts"], c["multiple"], size(c["bytes"]), c["hits"]["0"], *(c["hits"][m] for m in segments),
             ", ".join(f"{m}: {h:.3f}" for m, h in c["hits_shared"].items())]
            for c in told["caches"]
        ],
        caption="One cache for all mixtures has as many places in all; tried on the first windows of each text.",
    )  # fmt: skip


def _balance(page: Page, told: Mapping[str, Any]) -> None:
    page.heading("Load")
    rows = told["layers"]
    page.heat(
        [x["name"] for x in rows], _experts(told), [[c / max(1, sum(x["counts"])) * x["experts"] for c in x["counts"]] for x in rows],
        title="Tokens of each expert, as a multiple of its even share", note="1 is an even share",
    )  # fmt: skip
    page.heat(
        [x["name"] for x in rows], _experts(told), [[m / max(1e-12, sum(x["mass"])) * x["experts"] for m in x["mass"]] for x in rows],
        title="Router weight of each expert, as a multiple of its even share",
    )  # fmt: skip
    page.table(
        ["mixture", "experts", "in effect", "busiest over even", "deviation over mean", "chosen by no token"],
        [
            [
                x["name"],
                x["experts"],
                x["balance"]["effective"],
                x["balance"]["largest"],
                x["balance"]["spread"],
                len(x["unused"]),
            ]
            for x in rows
        ],
    )


def _pairs(page: Page, told: Mapping[str, Any]) -> None:
    page.heading("Experts that are alike, or go together")
    alike = [[x["name"], p["first"], p["second"], p["cosine"]] for x in told["layers"] for p in x["similar"]]
    page.table(
        ["mixture", "expert", "expert", "cosine of outputs"], sorted(alike, key=lambda r: -r[3]), most=20,
        caption="Mean cosine of what two experts make of the same tokens, whether they were chosen or not.",
    )  # fmt: skip
    going = [
        [x["name"], p["first"], p["second"], p["share"], p["lift"]]
        for x in told["layers"]
        for p in x["coactive"]
        if p["lift"] > 1
    ]
    page.table(
        ["mixture", "expert", "expert", "together", "times chance"], sorted(going, key=lambda r: -r[3]), most=20,
        caption="Share of the less used one's tokens that choose both.",
    )  # fmt: skip
    for x in told["layers"][:_MOST]:
        names = [str(e) for e in range(x["experts"])]
        if x.get("cosines"):
            page.heat(names, names, x["cosines"], title=f"{x['name']}: cosine of outputs")
        if x.get("together") and x["chosen"] > 1:
            shares = [[v / max(1, row[e]) for v in row] for e, row in enumerate(x["together"])]
            page.heat(names, names, shares, title=f"{x['name']}: share of a row's tokens that choose the column too")


def _by_text(page: Page, told: Mapping[str, Any]) -> None:
    if not told["by_text"]:
        return
    page.heading("Texts")
    by_text, names = told["by_text"], [t["name"] for t in told["texts"]]
    page.grouped_bars(
        [f"{m} tokens" for m in told["srp"]],
        {name: [by_text["srp"][name][m] for m in told["srp"]] for name in names},
        title="SRP within each text",
    )
    bits = {(p["first"], p["second"]): p["bits"] for p in by_text["divergence"]}
    page.heat(
        names, names, [[bits.get((a, b), bits.get((b, a), 0.0)) for b in names] for a in names],
        title="How far apart two texts use the experts", note="Jensen-Shannon divergence in bits, mean over mixtures; 1: none in common",
    )  # fmt: skip
    for x in told["layers"][:_MOST]:
        rows = [x["counts_by_text"][n] for n in names]
        page.heat(
            names, [str(e) for e in range(x["experts"])], [[c / max(1, sum(r)) * x["experts"] for c in r] for r in rows],
            title=f"{x['name']}: tokens of each expert, as a multiple of its even share",
        )  # fmt: skip
    home = by_text["at_home"]
    page.table(
        ["mixture", "expert", "text", "share of its use"],
        [[told["layers"][h["layer"]]["name"], h["expert"], h["text"], number(h["share"])] for h in home],
        caption="Experts at home in one text, texts counted alike.", most=30,
    )  # fmt: skip


def _experts(told: Mapping[str, Any]) -> Sequence[str]:
    return [str(e) for e in range(max(x["experts"] for x in told["layers"]))]
