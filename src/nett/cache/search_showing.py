"""What ``nett cache ets`` does: a search task with exact rewards, solved by several ways of choosing leaves, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.cache.countdown import Countdown, problem
from nett.core.progress import report
from nett.core.registry import Card
from nett.core.report.answer import answered
from nett.core.staging import check_folders

SHOWN = ("kv_tokens", "kv_mean", "kv_peak", "generated", "calls")


def ways_of(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ways that are compared: the method as it was asked for, and its rivals at the same width."""
    found = {by: {**parameters, "by": by} for by in ("beam", "dvts", "rebase")}
    if parameters["by"] == "ets":
        found["ets without coverage"] = {**parameters, "coverage": 0.0}
        found["ets"] = dict(parameters)
    return found


def show(
    card: Card,
    parameters: dict[str, Any],
    *,
    problems: int,
    numbers: int,
    skill: float,
    noise: float,
    json: Path | None,
    dry_run: bool,
) -> dict[str, Any]:
    """See :func:`nett.cache.engine.make`."""
    check_folders(json)
    ways = ways_of(parameters)
    told: dict[str, Any] = {
        "task": "countdown", "problems": problems, "numbers": numbers, "skill": skill, "noise": noise,
        "parameters": parameters,
    }  # fmt: skip
    if dry_run:
        return {"plan": told | {"ways": list(ways)}}
    search = card.load()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    report.begin("searching", problems, "problems")
    for i in range(problems):
        given, target = problem(int(parameters["seed"]), i, numbers)
        task = Countdown(given, target, skill=skill, noise=noise, seed=int(parameters["seed"]))
        for name, how in ways.items():
            found = search(task.prompt, task.generate, task.reward, **how)
            right = found.answer == str(target)
            rows[name].append({"right": right, "answer": found.answer} | {k: found.ledger[k] for k in SHOWN})
        report.step(1)
    report.end()
    told["ways"] = {
        name: {"accuracy": sum(r["right"] for r in found) / problems}
        | {k: sum(r[k] for r in found) / problems for k in SHOWN}
        for name, found in rows.items()
    }
    told["searches"] = rows
    return answered(told, _words, json=json)


def _words(told: Mapping[str, Any]) -> list[str]:
    base = told["ways"]["rebase"]["kv_tokens"]
    lines = [
        f"{told['problems']} problems of {told['numbers']} numbers at a width of {told['parameters']['width']}; KV in tokens,"
        " summed over a search's steps, and against rebase",
        f"{'':<22}{'right':>8}{'KV':>10}{'':>8}{'KV a step':>11}{'generated':>11}{'calls':>8}",
    ]
    for name, row in told["ways"].items():
        lines.append(
            f"{name:<22}{row['accuracy']:>8.1%}{row['kv_tokens']:>10,.0f}{row['kv_tokens'] / base:>7.2f}x"
            f"{row['kv_mean']:>11,.0f}{row['generated']:>11,.0f}{row['calls']:>8.1f}"
        )
    return lines
