"""Which laws a card must keep: those of every card, those of its kind, those of its room.

A law is a function ``law(card, folder)`` that raises if the card breaks it; its name is the law's name. A room adds
the file ``<room>_laws.py`` with a function ``laws(card)`` that lists its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from conformance import common_laws
from nett.core.registry import Card

Law = Callable[[Card, Path], None]


def room_laws(card: Card) -> list[Law]:
    """What the card's room asks of it; a room without laws is an error, so that none is forgotten."""
    name = f"conformance.{card.room}_laws"
    if importlib.util.find_spec(name) is None:
        raise LookupError(f"{card.key}: the room has no laws; write tests/conformance/{card.room}_laws.py")
    found: list[Law] = importlib.import_module(name).laws(card)
    return found


def laws_of(card: Card) -> list[Law]:
    """All laws of a card, the common ones first."""
    return [*common_laws.LAWS, *room_laws(card)]
