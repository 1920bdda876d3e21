"""Averages whose weights sum to zero: there is nothing to divide by, and what would come out is no average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.errors import Refused
from nett.core.registry import Card

LEAST = 1e-8  # a sum of weights that is nearer to zero counts as zero, as in mergekit's methods with a base


def check_average(card: Card, name: str, parameters: Mapping[str, Any], count: int) -> None:
    """Refused where a method that averages the models themselves, and not what they change of a base, is given weights
    that sum to zero. (mergekit 0.1.5 divides by it and writes NaN.)

    Args:
        name: of the tensor that the parameters are for.
        count: of models.
    """
    if "base" in card.operands or not parameters.get("normalize") or "weight" not in parameters:
        return
    given = parameters["weight"]
    weights = list(given) if isinstance(given, Sequence) else [given] * count
    if abs(sum(weights)) >= LEAST:
        return
    shown = ", ".join(f"{w:g}" for w in weights)
    raise Refused(
        f"the weights of {name!r} are {shown}, and an average divides by their sum, which is 0",
        where=card.key,
        hint="Give weights with another sum, leave the models with weight 0 out, or set normalize to false, which adds "
        "the weighted models up. In a recipe, nett merge explain shows every tensor's weights.",
    )
