"""``nett papers`` and ``nett claims``: the schema of the issue, to the letter, and what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nett.core import claims, papers, results
from nett.core.cards import all_cards
from nett.core.papers import catalogue
from nett.core.registry import ROOMS
from support.cli import nett

SCHEMA = {
    "type": "array",
    "minItems": 81,
    "maxItems": 81,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["id", "title", "room", "methods", "status", "claim"],
        "properties": {
            "id": {"type": "string", "pattern": "^P[0-9]{2}$"},
            "title": {"type": "string", "minLength": 5},
            "room": {"enum": list(ROOMS)},
            "methods": {"type": "array", "items": {"type": "string"}},
            "status": {"enum": ["works", "building", "planned"]},
            "claim": {"enum": ["holds", "fails", "none"]},
        },
    },
}
CLAIM = """
PAPER = "P10"
CLAIM = "Ties helps."
METHODS = ["merge/ties"]


def run(seeds, progress):
    from nett.core.claims import Check, Figure, Result

    progress("half way")
    return Result([Check("up", True, "1 > 0"), Check("far up", False, "1 < 9")], [Figure("toy", "1", 0, "a", 1.0)], [],
                  {"merge8": "NETT_ASSETS is not set"}, ["it is too small"])
"""


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(nett("papers", "--json").succeeded().out)
    return found


def row(paper: str) -> dict[str, Any]:
    return next(r for r in rows() if r["id"] == paper)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No stored result at all; what is stored goes to a folder of the test. A checkout with one toy claim."""
    monkeypatch.setattr(results, "ROOT", tmp_path / "results")
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "__init__.py").write_text("")  # else a real one, further down the path, comes first
    (tmp_path / "claims" / "P10.py").write_text(CLAIM)
    monkeypatch.setattr(claims, "checkout", lambda: tmp_path)
    return tmp_path


def test_json_is_as_promised() -> None:
    found = rows()
    jsonschema.validate(found, SCHEMA)
    assert [r["id"] for r in found] == [p.id for p in catalogue()]
    assert all(list(r) == ["id", "title", "room", "methods", "status", "claim"] for r in found)
    assert {r["room"] for r in found} >= {"merge", "weights", "lake"} and not any("." in r["room"] for r in found)


def test_the_first_papers_stand_as_their_results_say() -> None:
    """P04 and P10 work; whether their effect was seen is what was stored, whichever way."""
    for paper, methods in (("P10", ["ties"]), ("P04", ["consensus", "tall_masks"])):
        found = row(paper)
        assert set(methods) <= set(found["methods"])
        assert (found["status"], found["room"]) == ("works", "merge")
        stored = json.loads((results.ROOT / "claims" / f"{paper}.json").read_text())
        assert found["claim"] == stored["verdict"] in ("holds", "fails")


def test_without_results_nothing_works(empty: Path) -> None:
    assert (row("P10")["status"], row("P10")["claim"]) == ("building", "none")
    assert row("P01")["status"] == "planned"
    said = nett("papers").succeeded().out
    found = re.match(r"81 papers: 0 work, (\d+) building, (\d+) planned\nclaims: 0 hold, 0 fail, 81 not tested\n", said)
    assert found and int(found[1]) >= 3 and int(found[1]) + int(found[2]) == 81
    assert "P10: the laws of ties were never run" in said


def test_works_and_fails_side_by_side(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ties = next(c for c in all_cards() if c.key == "merge/ties")
    results.store_law(ties, {"a": "passed"})
    nett("claims", "run", "P10").succeeded()
    assert (row("P10")["status"], row("P10")["claim"]) == ("works", "fails")
    line = next(x for x in nett("papers").succeeded().out.splitlines() if x.startswith("P10"))
    assert line.split()[1:4] == ["works", "fails", "merge"] and papers.catalogue()[9].title in line
    monkeypatch.setattr(results, "hash_of_code", lambda source: "other")  # as if every method had been edited since
    monkeypatch.setattr(results, "code_of", lambda card: "other")
    monkeypatch.setattr(results.hashlib, "sha256", results.hashlib.sha512)
    assert (row("P10")["status"], row("P10")["claim"]) == ("building", "none")
    line = next(x for x in nett("papers").succeeded().out.splitlines() if x.startswith("P10"))
    assert line.split()[1:3] == ["building", "stale"]


def test_a_claim_that_fails_is_a_finding(empty: Path) -> None:
    """Exit code 0; each check, the cause, the bed that was left out, and where the record went."""
    said = nett("claims", "run", "P10").succeeded()
    assert "  holds  up\n" in said.out and "  FAILS  far up\n" in said.out and "1 < 9" in said.out
    assert "it is too small" in said.out and "skipped merge8: NETT_ASSETS is not set" in said.out
    assert said.out.splitlines()[-1].startswith("P10 fails, on toy")
    assert "half way" in said.err and "P10.json" in said.err
    assert (empty / "results" / "claims" / "P10.json").is_file()


def test_the_record_as_json(empty: Path) -> None:
    said = nett("claims", "run", "p10", "--json").succeeded()
    record = json.loads(said.out)
    assert record["verdict"] == "fails" and record["paper"] == "P10" and record["figures"][0]["value"] == 1.0


def test_dry_run_runs_and_writes_nothing(empty: Path) -> None:
    assert "would run" in nett("claims", "run", "P10", "--dry-run").succeeded().out
    assert "would write" in nett("claims", "table", "--dry-run").succeeded().out
    assert not (empty / "results").exists() and not (empty / "docs").exists()


def test_the_table(empty: Path) -> None:
    assert "1 claims" in nett("claims", "table").succeeded().out
    page = (empty / "docs" / "claims.md").read_text()
    assert page.startswith("# Claims") and "| P10 | Ties helps. | not run | | |" in page


def test_what_cannot_be_run(empty: Path) -> None:
    nett("claims", "run", "P99").failed(2, "'P99' is not a paper", "nett papers")
    nett("claims", "run", "P01").failed(2, "P01 has no claim file yet; there are P10")
    nett("claims", "run").failed(2, "ID")
    (empty / "claims" / "P10.py").write_text("PAPER = 'P10'\n")
    nett("claims", "run", "P10").failed(1, "a claim file needs CLAIM, METHODS")
