"""Laws of the experts room."""

from __future__ import annotations

from conformance import simulate_laws
from conformance.measure_laws import Law
from nett.core.registry import Card


def laws(card: Card) -> list[Law]:
    if card.name == "simulate":
        return simulate_laws.LAWS
    raise LookupError(f"{card.key}: no laws are stated for it")
