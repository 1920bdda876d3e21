"""Every card keeps the laws of its kind and room (DESIGN, section 3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.laws import Law, laws_of
from nett.core.cards import all_cards
from nett.core.registry import Card

CASES = [(card, law) for card in all_cards() for law in laws_of(card)]


@pytest.mark.parametrize(("card", "law"), CASES, ids=[f"{card.key}-{law.__name__}" for card, law in CASES])
def test_law(card: Card, law: Law, tmp_path: Path) -> None:
    law(card, tmp_path)
