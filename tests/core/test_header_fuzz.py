"""Mutated headers are opened or refused, never anything else. NETT_FUZZ=N: N cases instead of a few hundred."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.fuzz import case, mutated, seeds, use

pytest.importorskip("torch")
COUNT = int(os.environ.get("NETT_FUZZ", "200"))


@pytest.mark.timeout(300 + COUNT)
def test_any_header_opens_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    known = seeds(tmp_path / "seeds")
    for seed in known:
        use(seed.reference(seed.folder))  # sound, and what is compiled or imported late is so now
    wrong = {}
    for number in range(COUNT):
        found = case(known[number % len(known)], number, tmp_path / "case")
        if found is not None:
            wrong[number, known[number % len(known)].name] = found
    assert not wrong, next(iter(wrong.items()))


def test_a_case_is_its_number(tmp_path: Path) -> None:
    """The same number makes the same bytes, and most of them differ from the sound file."""
    import random

    (tmp_path / "seeds").mkdir()
    for seed in seeds(tmp_path / "seeds"):
        blob = (seed.folder / seed.file).read_bytes()
        made = [mutated(seed, blob, random.Random(n)) for n in range(20)]
        assert made == [mutated(seed, blob, random.Random(n)) for n in range(20)]
        assert sum(m != blob for m in made) > 15
