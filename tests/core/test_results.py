"""Stored proofs: keyed by the code they were found with, stale once it changed; and those of this repository fresh."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.laws import laws_of
from nett.core import results
from nett.core.cards import PACKAGE, all_cards
from nett.core.errors import NettError, Refused, UsageError
from nett.core.results import (
    claim_result,
    claimed_papers,
    hash_of_code,
    is_current,
    law_result,
    store_claim,
    store_law,
)
from support.toys import Toys, record, toys

CODE = '"""About."""\nimport os\n\n\n@register(title="T")\ndef f(a: int, *, b: float = 1.0) -> float:\n    """Doc."""\n    return a * b\n'


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    found = toys(tmp_path, monkeypatch)
    found.add("one")
    found.add("two")
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""About."""', '"""Other words."""'),
        ('"""About."""\n', ""),
        ('"""Doc."""', '"""Doc, longer.\n\n    Args:\n        a: what.\n    """'),
        ("a * b", "a * b  # why"),
        ("a * b", "(a\n        * b)"),
        ("import os\n\n", "import os\n"),
    ],
)
def test_wording_and_layout_do_not_change_the_hash(old: str, new: str) -> None:
    assert old in CODE
    assert hash_of_code(CODE.replace(old, new, 1).encode()) == hash_of_code(CODE.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a * b", "b * a"),
        ("= 1.0", "= 1"),
        ("= 1.0", "= 1.5"),
        ("= 1.0", "= None"),
        ('title="T"', 'title="U"'),
        ('title="T"', 'title=b"T"'),
        ("a: int", "a: str"),
        ("*, b", "b"),
        ("import os", "import re"),
        ("return a * b", "return a * b\n    return 0"),
        ("def f", "async def f"),
        ("return a * b", "'not a docstring'"),
    ],
)
def test_code_changes_the_hash(old: str, new: str) -> None:
    assert old in CODE
    assert hash_of_code(CODE.replace(old, new, 1).encode()) != hash_of_code(CODE.encode())


def test_a_law_result_is_fresh_until_the_code_changes(toy: Toys) -> None:
    assert law_result(toy.card("one")) is None
    assert store_law(toy.card("one"), {"b": "passed", "a": "skipped: no torch"})
    found = law_result(toy.card("one"))
    assert found is not None and found.fresh and found.passed
    assert list(found.laws.items()) == [("a", "skipped: no torch"), ("b", "passed")]
    toy.change("one", "Does nothing much.", "Does very little.")
    assert law_result(toy.card("one")).fresh  # type: ignore[union-attr]
    toy.change("one")
    stale = law_result(toy.card("one"))
    assert stale is not None and not stale.fresh and stale.passed
    toy.change("one", "* scale * 2", "* scale")
    assert law_result(toy.card("one")).fresh  # type: ignore[union-attr]


def test_the_same_outcome_leaves_the_file_as_it_is(toy: Toys) -> None:
    assert store_law(toy.card("one"), {"a": "passed"})
    (file,) = (results.ROOT / "laws").iterdir()
    assert file.name == "merge.one.json"
    before = file.stat()
    assert not store_law(toy.card("one"), {"a": "passed"})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert store_law(toy.card("one"), {"a": "failed"})
    assert [f.name for f in file.parent.iterdir()] == [file.name]  # nothing left beside it


@pytest.mark.parametrize(
    ("outcome", "passes"),
    [
        ({"a": "passed", "b": "passed"}, True),
        ({"a": "passed", "b": "skipped: why"}, True),
        ({"a": "passed", "b": "failed"}, False),
        ({"a": "skipped: why", "b": "skipped: why"}, False),
    ],
)
def test_what_passes(toy: Toys, outcome: dict[str, str], passes: bool) -> None:
    """One failure is enough to fail; skipping everything proves nothing."""
    store_law(toy.card("one"), outcome)
    assert law_result(toy.card("one")).passed is passes  # type: ignore[union-attr]


@pytest.mark.parametrize("word", ["", "ok", "PASSED", "skipped", "skipped: "])
def test_nonsense_is_not_stored(toy: Toys, word: str) -> None:
    with pytest.raises(UsageError, match="law 'a' came to"):
        store_law(toy.card("one"), {"a": word})
    with pytest.raises(UsageError, match="no law was run"):
        store_law(toy.card("one"), {})
    assert law_result(toy.card("one")) is None


def test_a_claim_goes_stale_with_any_of_its_methods(toy: Toys) -> None:
    assert claim_result("P10", toy.cards) is None and claimed_papers() == []
    peer = {"method": "merge/two", "asset": "x/y", "bytes": 1, "quality": 1.0, "spread": 0.0, "seconds": 0.0}
    store_claim("P10", record("fails", frontier=[peer]), toy.cards)
    found = claim_result("P10", toy.cards)
    assert found is not None and found.fresh and found.verdict == "fails" and claimed_papers() == ["P10"]
    assert found.record["code"].keys() == {"merge/one", "merge/two"}
    toy.change("two")  # a rival: the verdict stands, its point does not
    found = claim_result("P10", toy.cards)
    assert found is not None and found.fresh
    assert not is_current(toy.card("two"), found.record["code"]["merge/two"])
    toy.change("one")
    assert claim_result("P10", toy.cards).stale == ("merge/one",)  # type: ignore[union-attr]
    toy.file("one").unlink()
    assert claim_result("P10", toy.cards).stale == ("merge/one",)  # type: ignore[union-attr]


def test_a_claim_about_no_card_is_refused(toy: Toys) -> None:
    with pytest.raises(NettError, match="merge/three, which is no card"):
        store_claim("P10", record(methods=["merge/one", "merge/three"]), toy.cards)
    assert claim_result("P10", toy.cards) is None


def test_a_damaged_result_is_named_with_what_mends_it(toy: Toys) -> None:
    store_law(toy.card("one"), {"a": "passed"})
    file = results.ROOT / "laws" / "merge.one.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(NettError, match="cannot be read") as caught:
        law_result(toy.card("one"))
    assert str(file) in str(caught.value) and "delete it and run again" in str(caught.value)


def test_where_nothing_can_be_written_it_is_said(toy: Toys) -> None:
    results.ROOT.write_text("a file where the folder should be")
    with pytest.raises(Refused, match="run from a checkout that is yours"):
        store_law(toy.card("one"), {"a": "passed"})


def report(law: str, outcome: str, *, when: str = "call", card: str = "merge/one", why: Any = None) -> Any:
    return SimpleNamespace(
        user_properties=[("card", card), ("law", law)], outcome=outcome, skipped=outcome == "skipped", when=when, longrepr=why
    )  # fmt: skip


def gathered(*reports: Any) -> dict[str, dict[str, str]]:
    """What the plugin of ``--store-laws`` makes of reports."""
    from conftest import _Laws

    plugin = _Laws(SimpleNamespace())  # type: ignore[arg-type]
    for each in reports:
        plugin.pytest_runtest_logreport(each)
    return plugin.outcomes


def test_a_law_holds_only_if_every_phase_of_it_does() -> None:
    phases = ("setup", "call", "teardown")
    for broken in phases:
        reports = [report("a", "failed" if p == broken else "passed", when=p) for p in phases]
        assert gathered(*reports) == {"merge/one": {"a": "failed"}}
    assert gathered(*(report("a", "passed", when=p) for p in phases)) == {"merge/one": {"a": "passed"}}
    skipped = report("b", "skipped", when="setup", why=("file", 1, "Skipped: no torch"))
    found = gathered(skipped, report("b", "passed", when="teardown"))
    assert found == {"merge/one": {"b": "skipped: Skipped: no torch"}}
    assert gathered(SimpleNamespace(user_properties=[])) == {}


@pytest.mark.parametrize(
    ("ran", "stored"), [(("a", "b"), True), (("a",), False), (("a", "b", "c"), False), ((), False)]
)
def test_part_of_the_laws_is_not_stored(
    toy: Toys, monkeypatch: pytest.MonkeyPatch, ran: tuple[str, ...], stored: bool
) -> None:
    """A run of some laws only, as with -k, proves nothing of the card."""
    import conformance.laws
    from conftest import _Laws
    from nett.core import cards

    def a() -> None: ...
    def b() -> None: ...

    monkeypatch.setattr(cards, "all_cards", lambda: [toy.card("one")])
    monkeypatch.setattr(conformance.laws, "laws_of", lambda card: [a, b])
    plugin = _Laws(SimpleNamespace(getoption=lambda name: True))  # type: ignore[arg-type]
    for law in ran:
        plugin.pytest_runtest_logreport(report(law, "failed" if law == "b" else "passed"))
    plugin.pytest_sessionfinish(SimpleNamespace())  # type: ignore[arg-type]
    found = law_result(toy.card("one"))
    assert (found is not None) == stored
    assert found is None or (dict(found.laws) == {"a": "passed", "b": "failed"} and not found.passed)


# -- the results of this repository -----------------------------------------------------------------------------


def test_stored_laws_are_those_of_the_code_that_stands_here() -> None:
    """Every card, every law, passed (or skipped with a reason), found with the present code."""
    wrong = []
    for card in all_cards():
        found = law_result(card)
        if found is None:
            wrong.append(f"{card.key}: no stored laws")
        elif not found.fresh:
            wrong.append(f"{card.key}: has changed since its laws were run")
        elif not found.passed or found.laws.keys() != {law.__name__ for law in laws_of(card)}:
            wrong.append(f"{card.key}: the stored laws are not its laws, all passed")
    kept = {f"{c.room}.{c.name}.json" for c in all_cards()}
    wrong += [f"{f.name}: of no card" for f in (PACKAGE / "results" / "laws").iterdir() if f.name not in kept]
    assert not wrong, "\n".join([*wrong, "To mend: make laws, and commit src/nett/results/laws (delete what is left)."])


def test_stored_claims_are_those_of_the_code_that_stands_here() -> None:
    cards = {c.key: c for c in all_cards()}
    wrong = [
        f"{paper}: {', '.join(found.stale)} changed since. To mend: nett claims run {paper}"
        for paper in claimed_papers()
        if (found := claim_result(paper, cards)) is not None and not found.fresh
    ]
    assert not wrong, "\n".join([*wrong, "then: nett claims table, make docs, and commit (NETT_ASSETS must be set)."])


def test_stored_results_name_no_path_of_a_machine() -> None:
    files = sorted((PACKAGE / "results").rglob("*.json"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        json.loads(text)
        assert not re.search(r'(?:^|[\s"\'(=])(?:/|~/|[A-Z]:\\)\w', text), file.name
        assert str(Path.home()) not in text
