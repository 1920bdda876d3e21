"""Interference of fine-tunes, as lines of text and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.report import Page


def said(figures: Mapping[str, Any]) -> list[str]:
    """What the text output tells, a sentence a line; where nothing was compared, why."""
    if not figures.get("compared"):
        return [figures["why"]] if "why" in figures else []
    lines = []
    if left := figures["not_compared"]:
        lines.append(
            f"{len(left):,} tensors of the base were not compared, {left[0]!r} among them: not every fine-tune has them as"
            " floats of that shape"
        )
    if figures["sign_conflict"] is not None:
        lines.append(
            f"{_percent(figures['sign_conflict'])} of the elements that two or more moved go in opposite directions; such"
            f" elements hold {_percent(figures['conflict_mass'])} of all change, and a plain sum cancels"
            f" {_percent(figures['cancelled'])} of it"
        )
    elif any(row["moved"] for row in _rows(figures).values()):
        lines.append("no element was moved by two of them")
    if figures["mean_cosine"] is not None:
        lines.append(f"mean cosine of two task vectors {figures['mean_cosine']:.3f}")
    above = _above(figures["top"]["overlap"])
    if above:
        share = sum(figures["top"]["share"]) / len(figures["top"]["share"])
        mean = sum(above) / len(above)
        lines.append(f"largest entries: two share {_percent(mean)} of them, by chance it would be {_percent(share)}")
    shared = [s for s in figures["subspaces"].values() if s["shared"] is not None]
    if shared:
        mean, chance = (sum(s[key] for s in shared) / len(shared) for key in ("shared", "chance"))
        count = sum(len(s["matrices"]) for s in shared)
        lines.append(
            f"leading directions of {count:,} matrices (a sample of each kind): two share {_percent(mean)} of them, by"
            f" chance it would be {_percent(chance)}"
        )
    advice = figures["advice"]
    if advice["method"] is None:
        lines.append(f"no merge is suggested: {advice['reason']}")
    else:
        lines += [f"suggested: {advice['method']}, {advice['reason']}", f"  {advice['command']}"]
    return lines


def show(page: Page, figures: Mapping[str, Any]) -> None:
    """The section of a scan's page."""
    if not figures.get("compared"):
        return
    lines = said(figures)
    page.heading("How they would get in each other's way in a merge")
    for line in lines:
        if line.startswith("  "):
            page.code(line.strip())
        else:
            page.text(line[0].upper() + line[1:] + ".")
    paths = list(_rows(figures))
    page.heat(paths, paths, figures["cosines"], title="Cosine of the task vectors")
    page.heat(
        paths,
        paths,
        figures["pair_conflicts"],
        title="Opposite signs",
        note="share of the elements that both moved; coins would give a half",
    )
    page.heat(
        paths,
        paths,
        figures["top"]["overlap"],
        title="Largest entries in common",
        note=f"share of the smaller set, of the largest {_percent(figures['top']['asked'])} of all elements each",
    )
    kinds = {k: v["sign_conflict"] for k, v in figures["by_kind"].items() if v["sign_conflict"] is not None}
    page.figure_strip(
        kinds, title="Opposite signs by kind of tensor", note="share of the elements that two or more moved"
    )
    shared = {k: v["shared"] for k, v in figures["subspaces"].items() if v["shared"] is not None}
    page.figure_strip(
        shared,
        title="Leading directions in common",
        note="mean squared cosine of the principal angles, over the matrices looked at; 1 for the same subspace",
    )


def _rows(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures of each fine-tune, by its path."""
    return {path: row for path, row in figures.items() if isinstance(row, Mapping) and "norm_ratio" in row}


def _above(matrix: Sequence[Sequence[Any]]) -> list[float]:
    found = [matrix[s][t] for s in range(len(matrix)) for t in range(s + 1, len(matrix))]
    return [value for value in found if value is not None]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
