"""The machinery of claims on toy claim files: read, run, stored, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nett.core import claims, results
from nett.core.cards import PACKAGE, all_cards
from nett.core.claims import checkout, claims_of, find_claim, run_claim
from nett.core.claims_page import claims_page
from nett.core.errors import NettError, Refused, UsageError
from nett.core.papers import find_paper
from nett.core.results import claim_result
from support.toys import Toys, toys

CLAIM = '''"""A toy claim."""
from claims.bench import WIDTH
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P10"
CLAIM = "It helps."
METHODS = ["merge/one"]


def run(seeds, progress):
    progress("measuring")
    figures = [Figure("toy", f"width {WIDTH * w}", s, "accuracy", 60.12346 + s + w, note="scale 1") for s in seeds for w in (1, 2)]
    points = [Point("kept", "models/toy", 800, 90, 1, 0.0, trivial=True), Point("merge/one", "models/toy", 100, 75, 1, 0.1)]
    return Result([Check("it is better", True, "75 > 60"), Check("it is small", HOLDS, "100 < 800")], figures, points,
                  {"real": "NETT_ASSETS is not set"}, ["it was measured"])
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    found = toys(tmp_path, monkeypatch)
    found.add("one")
    monkeypatch.setattr(claims, "all_cards", lambda: list(found.cards.values()))
    monkeypatch.setattr(results, "all_cards", lambda: list(found.cards.values()))
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with the toy claim."""
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "__init__.py").write_text("")
    (tmp_path / "claims" / "bench.py").write_text("WIDTH = 64\n")
    write(tmp_path)
    return tmp_path


def write(root: Path, old: str = "HOLDS", new: str = "True") -> None:
    assert old in CLAIM
    (root / "claims" / "P10.py").write_text(CLAIM.replace(old, new).replace("HOLDS", "True"))


def ran(root: Path, **more: Any) -> dict[str, Any]:
    return run_claim(find_claim("P10", root), say=more.pop("say", lambda text: None), **more)


def test_literals_are_read_and_nothing_is_run(root: Path) -> None:
    (root / "claims" / "P10.py").write_text("raise SystemExit\n" + CLAIM)
    (claim,) = claims_of(root)
    assert (claim.paper, claim.claim, claim.methods) == ("P10", "It helps.", ("merge/one",))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('PAPER = "P10"\n', "", "needs PAPER"),
        ('CLAIM = "It helps."', 'CLAIM = ""', "needs CLAIM"),
        ('METHODS = ["merge/one"]', "METHODS = []", "needs METHODS"),
        ('CLAIM = "It helps."', 'CLAIM = "It helps." + str(1)', "CLAIM must be a literal"),
        ('PAPER = "P10"', 'PAPER = "P11"', "PAPER is 'P11', but the file is called P10.py"),
    ],
)
def test_a_claim_file_that_is_not_one(root: Path, old: str, new: str, part: str) -> None:
    write(root, old, new)
    with pytest.raises(NettError) as caught:
        claims_of(root)
    assert part in str(caught.value) and "P10.py" in str(caught.value)


def test_finding_a_claim(root: Path) -> None:
    assert find_claim("p10", root).paper == "P10"
    with pytest.raises(UsageError, match="P11 has no claim file yet; there are P10"):
        find_claim("P11", root)
    with pytest.raises(UsageError, match="'P99' is not a paper"):
        find_claim("P99", root)


def test_a_run_is_stored_with_everything(root: Path, toy: Toys) -> None:
    said: list[str] = []
    record = ran(root, seeds=(3, 4, 5), say=said.append)
    found = claim_result("P10", toy.cards)
    assert found is not None and found.fresh and found.verdict == record["verdict"] == "holds"
    stored = json.loads((results.ROOT / "claims" / "P10.json").read_text())
    assert {k: v for k, v in stored.items() if k != "code"} == json.loads(json.dumps(record))
    assert record["seeds"] == [3, 4, 5] and record["beds"] == ["toy"] and record["methods"] == ["merge/one"]
    assert record["skipped"] == {"real": "NETT_ASSETS is not set"} and record["because"] == ["it was measured"]
    assert record["figures"][0] == {
        "bed": "toy", "size": "width 64", "seed": 3, "what": "accuracy", "value": 64.1235, "unit": "%", "note": "scale 1",
    }  # fmt: skip
    assert [p["method"] for p in record["frontier"]] == ["kept", "merge/one"] and record["versions"]["nett"]
    assert any("measuring" in line and line.startswith("P10") for line in said) and "stored in" in said[-1]


def test_one_check_that_fails_is_a_verdict_of_fails(root: Path, toy: Toys) -> None:
    """Not an error: the record says which part does not hold."""
    write(root, "HOLDS", "False")
    record = ran(root)
    assert record["verdict"] == "fails" and [c["holds"] for c in record["checks"]] == [True, False]
    assert claim_result("P10", toy.cards).verdict == "fails"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[Check("it is better", True, "75 > 60"), Check("it is small", HOLDS, "100 < 800")]', "[]"),
        ("figures, points,", "[], points,"),
    ],
)
def test_without_checks_or_figures_there_is_no_verdict(root: Path, toy: Toys, old: str, new: str) -> None:
    write(root, old, new)
    with pytest.raises(NettError, match="gave no check or no figure"):
        ran(root)
    assert claim_result("P10", toy.cards) is None


def test_a_run_on_fewer_beds_does_not_replace_one_on_more(root: Path, toy: Toys) -> None:
    """Who has no real assets must not spoil the stored result by trying; once it is stale, he may."""
    more = 'Figure("real", "1", 0, "accuracy", 1.0)'
    write(root, "    points = [", f"    figures.append({more})\n    points = [")
    assert ran(root)["beds"] == ["toy", "real"]
    write(root, "HOLDS", "False")
    said: list[str] = []
    assert ran(root, say=said.append)["verdict"] == "fails"
    assert "not stored" in said[-1] and "real was skipped now" in said[-1]
    assert claim_result("P10", toy.cards).verdict == "holds"  # type: ignore[union-attr]
    toy.change("one")
    ran(root)
    found = claim_result("P10", toy.cards)
    assert found is not None and (found.verdict, found.fresh, found.record["beds"]) == ("fails", True, ["toy"])


def test_what_is_not_installed_is_named(root: Path, toy: Toys) -> None:
    (root / "claims" / "bench.py").write_text("import no_such_package\n")
    with pytest.raises(Refused, match="'no_such_package', which is not installed") as caught:
        ran(root)
    assert "pip install" in str(caught.value)


def test_a_helper_changed_between_runs_is_read_again(root: Path, toy: Toys) -> None:
    ran(root)
    (root / "claims" / "bench.py").write_text("WIDTH = 128  # wider\n")
    assert ran(root)["figures"][0]["size"] == "width 128"


def test_only_a_checkout_has_claims(tmp_path: Path) -> None:
    assert checkout() == PACKAGE.parent.parent
    for package in (tmp_path / "site-packages" / "nett", tmp_path / "src" / "nett"):
        package.mkdir(parents=True)
        with pytest.raises(Refused, match="claims are run from a source checkout") as caught:
            checkout(package=package)
        assert caught.value.exit_code == 3 and "Clone the repository" in str(caught.value)


def test_the_page(root: Path, toy: Toys) -> None:
    """Every figure as mean and standard deviation over the seeds, by size; a stale verdict is said to be so."""
    (claim,) = claims_of(root)
    assert "| P10 | It helps. | not run | | |" in claims_page([claim])
    ran(root)
    page = claims_page([claim])
    assert "| [P10](#p10) | It helps. | **holds** | toy |" in page
    assert "| | unit | width 64 | width 128 |" in page
    assert "| accuracy | % | 62.12 ± 1.00 | 63.12 ± 1.00 |" in page  # 60.12346 + size + {0, 1, 2}
    assert "Skipped: real (NETT_ASSETS is not set)." in page and "- it was measured" in page
    assert "| models/toy | kept (trivial) | 800 | 90.00 ± 1.00 | 0.000 |" in page
    toy.change("one")
    assert "stale (was: holds)" in claims_page([claim]) and "Run `nett claims run P10` again." in claims_page([claim])


# -- the claims of this repository ------------------------------------------------------------------------------


def test_claims_of_this_repository_are_about_methods_that_stand_here() -> None:
    cards = {c.key: c for c in all_cards()}
    found = claims_of(checkout())
    assert {"P10", "P04"} <= {c.paper for c in found}
    for claim in found:
        paper = find_paper(claim.paper)
        assert claim.claim.endswith(".") and len(claim.claim.split()) > 8
        assert {cards[m].name for m in claim.methods} == set(paper.methods), claim.paper
        assert all(claim.paper in cards[m].papers for m in claim.methods)


def test_a_claim_names_its_rule_before_its_numbers() -> None:
    """The docstring of every claim file states the rule that its verdict follows."""
    import ast

    for claim in claims_of(checkout()):
        text = ast.get_docstring(ast.parse(claim.file.read_bytes())) or ""
        assert "The rule of the verdict" in text, claim.file.name


def test_claims_page_is_what_the_stored_results_make_it() -> None:
    root = checkout()
    fresh = claims_page(claims_of(root)) == (root / "docs" / "claims.md").read_text(encoding="utf-8")
    assert fresh, "docs/claims.md is not what the stored results make it; to mend: nett claims table"


def test_a_package_without_a_checkout_says_so(tmp_path: Path) -> None:
    """As it is installed: the command, its exit code, its message."""
    import os
    import subprocess
    import sys

    shutil.copytree(PACKAGE, tmp_path / "nett", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for words in (("claims", "run", "P10"), ("claims", "table")):
        done = subprocess.run(
            [sys.executable, "-m", "nett", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert "claims are run from a source checkout" in done.stderr and "Traceback" not in done.stderr
