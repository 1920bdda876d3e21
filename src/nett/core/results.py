"""Stored proofs: what the laws said of each method and what each claim came to, as generated JSON in the package.

A result belongs to the code it was found with: it is keyed by the hash of the method's file, and is stale, that
is as good as absent, once that code has changed. Wording does not change the hash: docstrings, comments and
layout are left out of it. Nothing here is written by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.core import cards
from nett.core.cards import PACKAGE, all_cards, code_of
from nett.core.code_hash import hash_of_code
from nett.core.errors import NettError, Refused, UsageError
from nett.core.registry import Card

ROOT = PACKAGE / "results"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped: "


@final
@dataclass(frozen=True)
class LawResult:
    """What the conformance suite found for one card. ``fresh``: found with the code that stands there now."""

    laws: Mapping[str, str]
    fresh: bool

    @property
    def passed(self) -> bool:
        """Whether at least one law was passed and none failed."""
        outcomes = self.laws.values()
        return PASSED in outcomes and FAILED not in outcomes


@final
@dataclass(frozen=True)
class ClaimResult:
    """What a paper's experiment came to. ``stale``: the methods whose code has changed since."""

    record: Mapping[str, Any]
    stale: tuple[str, ...]

    @property
    def fresh(self) -> bool:
        return not self.stale

    @property
    def verdict(self) -> str:
        """``holds`` or ``fails``."""
        return str(self.record["verdict"])


def source_file(card: Card) -> Path:
    """The file that the card was read from."""
    return PACKAGE.joinpath(*card.module.split(".")[1:]).with_suffix(".py")


def code_hash(card: Card) -> str:
    """sha256 of the code of the method's file; see :func:`hash_of_code`."""
    return hash_of_code(source_file(card).read_bytes())


def key_of(card: Card) -> dict[str, str]:
    """What a result is keyed by: ``code`` decides; ``file``, the hash of the bytes, says the same when equal."""
    blob = source_file(card).read_bytes()
    return {"code": hash_of_code(blob), "file": hashlib.sha256(blob).hexdigest()}


def is_current(card: Card, key: Mapping[str, str]) -> bool:
    """Whether the card's code is still that of ``key``."""
    known = code_of(card) if PACKAGE == cards.PACKAGE else None
    if known is not None:
        return known == key.get("code")
    try:
        blob = source_file(card).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(blob).hexdigest() == key.get("file") or hash_of_code(blob) == key.get("code")


def _law_file(card: Card) -> Path:
    return ROOT / "laws" / f"{card.room}.{card.name}.json"


def law_result(card: Card) -> LawResult | None:
    """The stored outcome of the laws for a card, or None."""
    record = _read(_law_file(card))
    return None if record is None else LawResult(record["laws"], is_current(card, record))


def store_law(card: Card, outcome: Mapping[str, str]) -> bool:
    """Store law -> ``passed``, ``failed`` or ``skipped: why`` for the card's present code.

    Returns whether anything changed; the same outcome leaves the file untouched.
    """
    for law, word in outcome.items():
        if word not in (PASSED, FAILED) and not (word.startswith(SKIPPED) and len(word) > len(SKIPPED)):
            raise UsageError(
                f"law {law!r} came to {word!r}; expected 'passed', 'failed' or 'skipped: why'", where=card.key
            )
    if not outcome:
        raise UsageError("no law was run, so there is nothing to store", where=card.key)
    return _write(_law_file(card), {"card": card.key, **key_of(card), "laws": dict(sorted(outcome.items()))})


def _claim_file(paper: str) -> Path:
    return ROOT / "claims" / f"{paper}.json"


def claim_result(paper: str, cards: Mapping[str, Card] | None = None) -> ClaimResult | None:
    """The stored outcome of a paper's claim, or None. ``cards`` by key, where the caller has them already."""
    record = _read(_claim_file(paper))
    if record is None:
        return None
    cards = {c.key: c for c in all_cards()} if cards is None else cards
    keys = record["code"]
    stale = [m for m in record["methods"] if m not in cards or not is_current(cards[m], keys[m])]
    return ClaimResult(record, tuple(stale))


def claimed_papers() -> list[str]:
    """The papers that have a stored claim result, in order."""
    return sorted(f.stem for f in (ROOT / "claims").glob("P*.json"))


def store_claim(paper: str, record: Mapping[str, Any], cards: Mapping[str, Card]) -> Path:
    """Store a claim's record with the keys of all cards that it speaks of: its methods and its frontier's."""
    lacking = [m for m in record["methods"] if m not in cards]
    if lacking:
        raise NettError(f"the claim is about {', '.join(lacking)}, which is no card", where=paper)
    named = {*record["methods"], *(p["method"] for p in record["frontier"] if p["method"] in cards)}
    _write(_claim_file(paper), {**record, "code": {name: key_of(cards[name]) for name in sorted(named)}})
    return _claim_file(paper)


def _read(place: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(place.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NettError(
            f"cannot be read: {error}", where=place, hint="It is generated; delete it and run again."
        ) from error
    return dict(content)


def _write(place: Path, record: Mapping[str, Any]) -> bool:
    """One line a field, one line an entry of a list, so that a change shows as the lines it touches."""
    lines = []
    for name, value in record.items():
        entries = value.items() if isinstance(value, Mapping) else value
        if isinstance(value, Mapping) and value:
            inner = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in entries)
            lines.append(f" {json.dumps(name)}: {{\n  {inner}\n }}")
        elif isinstance(value, list | tuple) and value:
            inner = ",\n  ".join(json.dumps(v, ensure_ascii=False) for v in entries)
            lines.append(f" {json.dumps(name)}: [\n  {inner}\n ]")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    blob = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    try:
        if place.is_file() and place.read_bytes() == blob:
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}.partial")
        beside.write_bytes(blob)
        os.replace(beside, place)
    except OSError as error:
        raise Refused(
            f"cannot be written: {error.strerror}",
            where=place,
            hint="Results are stored inside the package: run from a checkout that is yours.",
        ) from error
    return True
