"""Laws of what only looks (kind ``measure``) and of commands that take the user's paths themselves: the same answer
every time, inputs untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nett.core.registry import Card
from nett.core.tiny import fine_tune_of, write_llama

Law = Callable[[Card, Path], None]


def given(card: Card, folder: Path) -> list[str]:
    """What the card takes: checkpoints, or where its help says so a recipe that names them."""
    paths = assets(folder)
    if "RECIPE" not in card.summary.upper():
        return paths
    recipe = folder / "recipe.yml"
    models = "".join(f"  - model: {p}\n    parameters: {{weight: 1.0}}\n" for p in paths[1:])
    recipe.write_text(f"merge_method: ties\nbase_model: {paths[0]}\nmodels:\n{models}")
    return [str(recipe)]


def assets(folder: Path) -> list[str]:
    """A base and two fine-tunes of it."""
    base = write_llama(folder / "base", shards=2)
    return [str(base), *(str(fine_tune_of(base, folder / f"m{i}", seed=i)) for i in (1, 2))]


def answered(card: Card, paths: list[str]) -> Any:
    """What the command says, as plain JSON without times."""
    result = card.load()(paths, **card.resolve({}))
    if hasattr(result, "__iter__") and not isinstance(result, str | dict | list):
        result = list(result)
    return timeless(json.loads(json.dumps(result, default=_plain)))


def _plain(value: Any) -> Any:
    return value.as_json() if hasattr(value, "as_json") else vars(value) if hasattr(value, "__dict__") else str(value)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "second" not in k and k != "resident"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def same_answer_twice(card: Card, folder: Path) -> None:
    paths = given(card, folder)
    assert answered(card, paths) == answered(card, paths)


def assets_untouched(card: Card, folder: Path) -> None:
    paths = given(card, folder)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    states = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    answered(card, paths)
    assert sorted(f for f in folder.rglob("*") if f.is_file()) == files
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == states


LAWS: list[Law] = [same_answer_twice, assets_untouched]
