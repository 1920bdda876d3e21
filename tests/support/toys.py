"""A toy package of methods in a folder, with a place of its own for results: what tests of proofs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest

from nett.core import results
from nett.core.cards import all_cards
from nett.core.registry import Card

METHOD = '''"""A toy."""

from nett.core.registry import method


@method(papers=["P10"], title="Toy", needs=["base"])
def NAME(base: Array, tuned: Sequence[Array], *, scale: float = 1.0) -> Array:
    """Does nothing much.

    Args:
        scale: a factor.
    """
    return base * scale  # as it is
'''


@final
@dataclass(frozen=True)
class Toys:
    """Methods ``merge/<name>`` whose sources a test may change."""

    package: Path

    def card(self, name: str) -> Card:
        return self.cards[f"merge/{name}"]

    @property
    def cards(self) -> dict[str, Card]:
        return {c.key: c for c in all_cards(self.package)}

    def add(self, name: str, *, paper: str = "P10") -> Card:
        self.file(name).write_text(METHOD.replace("NAME", name).replace("P10", paper))
        return self.card(name)

    def file(self, name: str) -> Path:
        return self.package / "merge" / f"{name}.py"

    def change(self, name: str, old: str = "* scale", new: str = "* scale * 2") -> Card:
        """Edit a method; by default what it computes."""
        text = self.file(name).read_text()
        assert old in text
        self.file(name).write_text(text.replace(old, new))
        return self.card(name)

    def passed(self, *names: str, outcome: str = "passed") -> None:
        """Store laws for methods as if they had been run."""
        for name in names:
            results.store_law(self.card(name), {"law_a": "passed", "law_b": outcome})


def toys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    """An empty toy package; results are read from and stored in ``folder`` while the test runs."""
    (folder / "pack" / "merge").mkdir(parents=True)
    monkeypatch.setattr(results, "PACKAGE", folder / "pack")
    monkeypatch.setattr(results, "ROOT", folder / "results")
    return Toys(folder / "pack")


def record(verdict: str = "holds", **more: Any) -> dict[str, Any]:
    """A claim's record as ``run_claim`` stores it."""
    return {
        "paper": "P10", "claim": "It helps.", "methods": ["merge/one"], "verdict": verdict, "beds": ["bed"],
        "skipped": {}, "checks": [{"rule": "a > b", "holds": verdict == "holds", "figures": "a 1, b 2"}],
        "because": [], "frontier": [],
        "figures": [{"bed": "bed", "size": "4", "seed": 0, "what": "a", "value": 1.0, "unit": "%"}],
        "seeds": [0, 1, 2], "date": "2026-01-01", "seconds": 3, "versions": {"nett": "0"}, **more,
    }  # fmt: skip
