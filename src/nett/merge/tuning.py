"""Parameters set to ``auto``: try the card's grid, let a command of the user's judge, keep the best."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core.errors import Refused, UsageError
from nett.core.progress import report
from nett.core.registry import Card


def score(command: str, model: Path, task: str) -> float:
    """Run the judge on a model: the last line that it prints is the score."""
    line = command.replace("{model}", shlex.quote(str(model))).replace("{task}", shlex.quote(task))
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0:
        raise Refused(
            f"the --eval command ended with exit code {done.returncode}: "
            + (done.stderr.strip() or "no message")[-500:],
            where=line,
        )
    try:
        value = float(lines[-1])
    except (IndexError, ValueError):
        value = float("nan")
    if value != value:
        raise Refused(
            f"the last line that the --eval command printed is not a number: {lines[-1] if lines else ''!r}",
            where=line,
            hint="It must print a score as its last line; larger is better.",
        )
    return value


def tuned_parameters(
    card: Card,
    assets: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    command: str | None,
    base: Path | None,
    out: Path,
    dtype: str | None,
    threads: int,
) -> dict[str, Any]:
    """``parameters`` with every ``auto`` replaced by the value of its grid that scores best.

    Where tasks can be rebuilt, each task gets the value that is best for its own rebuilt checkpoint.
    """
    if command is None or "{model}" not in command:
        raise UsageError(
            "auto needs a command that judges a model",
            where=card.key,
            hint="--eval 'python evaluate.py {model}'",
        )
    chosen = dict(parameters)
    for parameter in card.parameters:
        if chosen[parameter.name] != "auto":
            continue
        rest = {k: (card.parameter(k).grid[0] if v == "auto" else v) for k, v in chosen.items()}  # type: ignore[union-attr]
        options = {"base": base, "dtype": dtype, "threads": threads, "speak": False}
        table = [_try(card, assets, rest | {parameter.name: v}, options, out, command) for v in parameter.grid]
        best = [max(range(len(table)), key=lambda row, i=i: table[row][i]) for i in range(len(table[0]))]  # type: ignore[misc]
        values = [parameter.grid[b] for b in best]
        chosen[parameter.name] = values if card.restore else values[0]
        for value, scores in zip(parameter.grid, table, strict=True):
            report.say(f"{parameter.name} = {value:g}: " + ", ".join(f"{s:.6g}" for s in scores))
        report.say(f"{parameter.name} chosen: {chosen[parameter.name]}")
    return chosen


def _try(
    card: Card,
    assets: Sequence[str],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
    out: Path,
    command: str,
) -> list[float]:
    """Scores of one setting: of the merged model, or of each rebuilt task."""
    from nett.merge import engine
    from nett.merge.restoring import restore_task, task_names

    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=parent, prefix=".nett-tune-"))
    try:
        merged = scratch / "merged"
        receipt = engine.run(card, assets, parameters, out=merged, **options)
        if card.restore is None:
            return [score(command, merged, "")]
        scores = []
        for task in task_names(receipt):
            rebuilt = scratch / task
            restore_task(merged, receipt, task=task, out=rebuilt, threads=options["threads"])
            scores.append(score(command, rebuilt, task))
            shutil.rmtree(rebuilt)
        return scores
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
