"""A study for people: lines on a terminal, and a page with its figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.report import Page
from nett.weights.study_compare import LEVEL, differing


def words_of(told: Mapping[str, Any]) -> list[str]:
    """A row for each width and text, and what the tests say."""
    texts, rates = list(told["texts"]), _rates(told)
    lines = [f"{told['by']}: perplexity (and its ratio to the original's with the 95 % interval), share that is right"]
    lines.append(f"{'arm':<16}" + "".join(f"{t:>32}" for t in texts) + "".join(f"{r:>22}" for r in rates))
    for row in told["summary"]:
        name = f"{row['bits']} bits {row['source']}" if row["bits"] else "original"
        cells = []
        for t in texts:
            ratio, low, high = row[f"ratio {t}"]
            cells.append(f"{row[f'perplexity {t}']:>10.3f} ×{ratio:.3f} ({low:.3f} to {high:.3f})".rjust(32))
        lines.append(f"{name:<16}" + "".join(cells) + "".join(f"{row[r]:>22.3f}" for r in rates))
    return [*lines, *sentences(told), *(f"note: {n}" for n in told["notes"])]


def _rates(told: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(r["asked"] for r in told["comparisons"]))


def sentences(told: Mapping[str, Any]) -> list[str]:
    """For each width: how many arms differ from the original, how many texts from one another."""
    rows, said = told["comparisons"], []
    for bits in dict.fromkeys(r["bits"] for r in rows):
        own = [r for r in rows if r["bits"] == bits]
        first = differing([r for r in own if r["first"] == "original"])
        others = differing([r for r in own if r["first"] != "original"])
        line = f"{bits} bits: {first[0]} of {first[1]} comparisons with the original differ"
        said.append(line + (f", and {others[0]} of {others[1]} of two calibration texts" if others[1] else ""))
    return [*said, f"(exact McNemar tests, all {len(rows)} adjusted together; a false discovery rate of {LEVEL:g})"]


def page_of(told: Mapping[str, Any]) -> Page:
    """The same with pictures: perplexity against bits, a line for each text of calibration."""
    page = Page("nett weights study", str(told["model"]))
    page.verdict(sentences(told)[0][0].upper() + sentences(told)[0][1:] + ".")
    for line in sentences(told)[1:]:
        page.text(line)
    page.contents()
    page.heading("Loss by width and calibration text")
    rows = [r for r in told["summary"] if r["bits"]]
    for text in told["texts"]:
        series: dict[str, list[Any]] = {}
        for row in sorted(rows, key=lambda r: r["bits"]):
            series.setdefault(row["source"] or "no text", []).append((row["bits"], *row[f"ratio {text}"]))
        page.lines(
            series, title=f"Perplexity on {text}, ratio to the original's", xlabel="bits", ylabel="ratio",
            note="bands: 95 % interval, paired by windows; 1 is the original, lower is better",
        )  # fmt: skip
    for asked in _rates(told):
        page.grouped_bars(
            [f"{b} bits" for b in dict.fromkeys(r["bits"] for r in rows)],
            {
                source or "no text": [100 * r[asked] for r in rows if r["source"] == source]
                for source in dict.fromkeys(r["source"] for r in rows)
            },
            title=f"{asked}, share that is right",
            unit="%",
            note=f"the original: {100 * next(r[asked] for r in told['summary'] if not r['bits']):.1f} %",
        )
    page.heading("All arms")
    texts, rates = list(told["texts"]), _rates(told)
    page.table(
        ["bits", "calibration", "draws", "bits a weight", *(f"perplexity, {t}" for t in texts), *rates],
        [
            [r["bits"] or "original", r["source"], r["draws"], r.get("bits_a_weight"), *(r[f"perplexity {t}"] for t in texts),
             *(r[a] for a in rates)]
            for r in told["summary"]
        ],
    )  # fmt: skip
    page.heading("Tests")
    page.text(
        "Exact McNemar tests on the same questions. lost: only the first is right; gained: only the second; odds: gained to "
        "lost with the 95 % interval; q: p adjusted for all comparisons (Benjamini and Hochberg)."
    )
    if told["questions"]:
        page.text(
            "Questions: "
            + ", ".join(f"{v:,} tokens of {n}" for n, v in told["questions"].items())
            + f"; {told['tasks']:,} tasks."
        )
    head = ("bits", "draw", "asked", "first", "second", "lost", "gained", "odds", "low", "high", "p", "q", "differs")
    worst = sorted(told["comparisons"], key=lambda r: r["q"])
    page.table(list(head), [[r[k] for k in head] for r in worst])
    if told["ran_code"]:
        page.heading("Programs that were run")
        page.text(f"Barriers that stood: {', '.join(told['barriers'])}.")
    page.heading("How")
    page.key_values(
        {"method": told["by"], **told["parameters"], "calibration": told["calibration"], "texts": told["texts"]}
    )
    return page
