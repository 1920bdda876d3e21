"""The 81 papers, and what of each stands here: computed from cards and stored results, never typed by hand.

``status`` says whether the system is complete. *planned*: no card of the catalogue's methods exists. *building*:
some exist but not all, or a law result is missing, failed or stale. *works*: all exist, each with passing laws
found with its present code. ``claim`` says whether the paper's effect was seen: *holds* or *fails*, or *none* where
no experiment was run with the present code. Works and fails is legal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, final

from nett.core.cards import PACKAGE, all_cards
from nett.core.errors import UsageError, did_you_mean
from nett.core.registry import Card
from nett.core.results import claim_result, law_result

STATUSES = ("works", "building", "planned")
CLAIMS = ("holds", "fails", "none")


@final
@dataclass(frozen=True)
class Paper:
    """One entry of the catalogue; ``room`` with its sub-folder (``weights.prune``), ``methods`` by bare name."""

    id: str
    title: str
    room: str
    methods: tuple[str, ...]
    idea: str
    works_when: str

    @property
    def top_room(self) -> str:
        return self.room.partition(".")[0]


@final
@dataclass(frozen=True)
class Row:
    """A paper as it stands. ``lacking``: what keeps it from working, one line each."""

    paper: Paper
    methods: tuple[str, ...]
    status: str
    claim: str
    lacking: tuple[str, ...]
    stale_claim: bool = False

    def as_json(self) -> dict[str, Any]:
        """The row of ``nett papers --json``."""
        return {
            "id": self.paper.id,
            "title": self.paper.title,
            "room": self.paper.top_room,
            "methods": list(self.methods),
            "status": self.status,
            "claim": self.claim,
        }


@cache
def catalogue() -> tuple[Paper, ...]:
    """Every paper, by id."""
    import tomllib

    with (PACKAGE / "core" / "papers.toml").open("rb") as file:
        entries = tomllib.load(file)["paper"]
    return tuple(Paper(**{**entry, "methods": tuple(entry["methods"])}) for entry in entries)


def find_paper(name: str) -> Paper:
    """The paper with the id ``name`` (``p10`` will do); UsageError otherwise."""
    wanted = name.upper()
    for paper in catalogue():
        if paper.id == wanted:
            return paper
    known = [p.id for p in catalogue()]
    near = did_you_mean(wanted, known) if len(wanted) <= 4 else ""
    raise UsageError(f"{name!r} is not a paper; ids go from {known[0]} to {known[-1]}.{near}", hint="See: nett papers")


def paper_rows(cards: Sequence[Card] | None = None) -> list[Row]:
    """Every paper as it stands, by id."""
    cards = all_cards() if cards is None else cards
    return [row_of(paper, cards) for paper in catalogue()]


def row_of(paper: Paper, cards: Sequence[Card]) -> Row:
    """One paper as it stands."""
    citing = [c for c in cards if paper.id in c.papers]
    made = {c.name: c for c in citing if c.name in paper.methods}
    lacking = [f"no method {name} yet" for name in paper.methods if name not in made]
    for name in (n for n in paper.methods if n in made):
        found = law_result(made[name])
        if found is None:
            lacking.append(f"the laws of {name} were never run")
        elif not found.fresh:
            lacking.append(f"{name} has changed since its laws were run")
        elif not found.passed:
            broken = ", ".join(law for law, word in found.laws.items() if word == "failed") or "no law was passed"
            lacking.append(f"{name} breaks its laws: {broken}")
    status = "planned" if not made else "building" if lacking else "works"
    # Bare names, as in the catalogue; a card that stands in another room is named with it.
    names = tuple(c.name if c.room == paper.top_room else c.key for c in citing)
    outcome = claim_result(paper.id, {c.key: c for c in cards})
    claim = outcome.verdict if outcome is not None and outcome.fresh else "none"
    stale = outcome is not None and not outcome.fresh
    return Row(paper, names, status, claim, tuple(lacking), stale)
