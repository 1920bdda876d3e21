"""The cache room's engine: policies for Python, and what a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nett.core.registry import Card

_OPTIONS = ("budget", "every", "when")


def serve(card: Card, given: Mapping[str, Any]) -> Any:
    """``nett.cache.METHOD(budget=…, …)`` as a :class:`nett.cache.policy.Policy`."""
    from nett.cache.policy import Policy

    options = {k: v for k, v in given.items() if k in _OPTIONS and card.parameter(k) is None}
    return Policy(card, card.resolve({k: v for k, v in given.items() if k not in options}), **options)
