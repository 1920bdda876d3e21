"""The generated pages are what the generator would write now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nett.core.cards import all_cards

ROOT = Path(__file__).resolve().parents[2]


def test_generated_docs_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


SECTIONS = ["Options", "When to use", "When not", "Guarantee", "Cost", "Measured here", "Paper"]


@pytest.mark.parametrize("card", [c for c in all_cards() if not c.hidden], ids=lambda c: c.key)
def test_page_of_a_method_holds_what_a_reader_needs(card) -> None:  # type: ignore[no-untyped-def]
    """What it does, its formula where it computes one, options with range and default, when, when not, what is
    guaranteed, the cost, what was measured here, the paper; in this order and none of them empty."""
    text = (ROOT / "docs" / "methods" / card.room / f"{card.name}.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    headings, bodies = parts[1::2], [b.strip() for b in parts[2::2]]
    python = card.kind == "train"  # used from Python: a call and parameters in the place of options
    sections = ["Use", "Parameters", *SECTIONS[1:]] if python else ["Use"] * ("Example" in card.sections) + SECTIONS[:]
    if "Place" in card.sections:
        sections.insert(sections.index("Measured here"), "Place")
    assert headings == (["Formula"] if "Formula" in card.sections else []) + sections
    assert "Formula" in card.sections or card.kind != "reduce" or card.command
    assert all(bodies), dict(zip(headings, bodies, strict=True))
    assert f"# {card.title}" in parts[0] and card.summary in parts[0]
    assert f"guarantee **{card.guarantee}**" in parts[0] and f"grain {card.grain}" in parts[0]
    body = dict(zip(headings, bodies, strict=True))
    assert body["Guarantee"].startswith(f"**{card.guarantee}**: ")
    for parameter in card.parameters:
        name = parameter.name if python else f"--{parameter.name.replace('_', '-')}"
        (row,) = [r for r in body["Parameters" if python else "Options"].splitlines() if r.startswith(f"| `{name}` |")]
        assert f"`{parameter.default}`" in row and parameter.description in row
    for paper in card.papers:
        assert f"{paper}: *" in body["Paper"]


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not dead, dead
